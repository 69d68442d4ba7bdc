"""TCP addresses to listen at: what they mean, also where a machine has no IPv6 or no IPv4."""

import errno
import socket
from ipaddress import ip_address

from selector_proto.contract import BRACKETS, lacks_brackets

# A name may have addresses of both families, of which this machine need not have both.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen_at(address: str) -> socket.socket:
    """Returns a socket that listens at host:port.

    0.0.0.0 and [::] both mean every address of this machine, IPv6 and IPv4, or IPv4 alone where IPv6 is off: gRPC reads
    them so, and all settings should mean the same. A name means the first of its addresses that this machine has, those
    of IPv4 first. Raises ValueError for what is no address, and OSError for one that is not free or not ours.
    """
    host, port = _split(address)
    if _is_every(host):
        if socket.has_dualstack_ipv6():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    *others, last = sorted(found, key=lambda one: one[0] == socket.AF_INET6)
    for family, *_, place in others:
        try:
            return socket.create_server(place, family=family)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    return socket.create_server(last[-1], family=last[0])


def _split(address: str) -> tuple[str, int]:
    """Returns host and port. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if lacks_brackets(address):
        raise ValueError(BRACKETS)
    if not host or not (port.isascii() and port.isdigit()):
        raise ValueError("there is no host or no port")
    if int(port) > 65535:
        raise ValueError("the port must be 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_every(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # It is a name.
        return False
