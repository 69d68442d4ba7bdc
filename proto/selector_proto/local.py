"""Which addresses stay on this host."""

import re

_LOCAL = re.compile(r"(unix:.*|((dns|ipv4):(///)?)?(localhost|127\.\d+\.\d+\.\d+)(:\d+)?|(ipv6:)?\[::1\](:\d+)?)")


def is_local(address: str) -> bool:
    """Whether only this host's processes reach a gRPC address: loopback or a unix socket."""
    return _LOCAL.fullmatch(address) is not None
