"""What a URL of Redis says: one server, its Sentinels, or a Redis Cluster. Nothing here connects."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlunsplit

from redis.connection import parse_url

from selector_proto.contract import MAX_SOCKET_PATH_BYTES
from selector_proto.weights.link import HIDDEN, HOST, LinkError, masked, split

FORMS = (
    "redis://host:port/0, rediss://host:port/0, unix:///path, redis+sentinel://host:port,host:port/service/0, "
    "redis+cluster://host:port,host:port (rediss+… with TLS)"
)
SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix")
# What may follow the question mark. redis-py would take anything there, and fail at the first command.
_QUERY = {"db", "username", "password", "protocol", "client_name", "health_check_interval"}
_QUERY |= {"socket_timeout", "socket_connect_timeout", "socket_keepalive"}
_QUERY |= {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}


@dataclass(frozen=True)
class Address:
    """What a URL says. `hosts` are pairs of a name and a port; `path` is that of a unix socket, empty for TCP;
    `settings` are user, password, database and query, as redis-py names them."""

    kind: Literal["single", "sentinel", "cluster"]
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    path: str = ""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)


def parse(url: str) -> Address:
    """What `url` says. Raises LinkError."""
    parts, shown = split(url), masked(url)
    if parts is None or parts.scheme not in SCHEMES or shown == HIDDEN or parts.fragment:
        raise LinkError(shown, f"must be {FORMS}")
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or parts.path in ("", "/"):
            raise LinkError(shown, "must be unix:///path, with three slashes")
        path = unquote(parts.path)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise LinkError(shown, f"the path of a unix socket must have 1 to {MAX_SOCKET_PATH_BYTES} bytes")
        return Address("single", path=path, settings=_settings(parts, shown))
    return _servers(parts, shown)


def _servers(parts: SplitResult, shown: str) -> Address:
    base, _, kind = parts.scheme.partition("+")
    hosts, settings = parts.netloc.rpartition("@")[2], _settings(parts, shown)
    if not hosts:
        raise LinkError(shown, "must have a host")
    default_port = 26379 if kind == "sentinel" else 6379
    places = tuple(_host(text, default_port, shown) for text in hosts.split(","))
    tls, words = base == "rediss", [unquote(word) for word in parts.path.split("/") if word]
    if kind == "cluster":
        if words or settings.pop("db", 0):
            raise LinkError(shown, "must end after its hosts: a cluster has no database numbers")
        return Address("cluster", tls, places, settings=settings)
    service = words.pop(0) if kind == "sentinel" and words else ""
    if kind == "sentinel" and not service:
        raise LinkError(shown, "must name the service after the hosts: redis+sentinel://host:port/service/0")
    if kind == "" and len(places) > 1:
        raise LinkError(shown, "must have one host; several are for redis+sentinel:// and redis+cluster://")
    if len(words) > 1 or (words and not (words[0].isdecimal() and len(words[0]) < 10)):
        raise LinkError(shown, "must end with the number of a database")
    database = {"db": int(words[0])} if words else {}
    return Address("sentinel" if service else "single", tls, places, service, settings=database | settings)


def _host(text: str, default_port: int, shown: str) -> tuple[str, int]:
    match = HOST.fullmatch(text)
    if match is None or not 0 < (port := int(match[2] or default_port)) < 1 << 16:
        raise LinkError(shown, "must have ports from 1 to 65535")
    return unquote(match[1].strip("[]")), port


def _settings(parts: SplitResult, shown: str) -> dict[str, Any]:
    """User, password and query, found by redis-py's own parser, which knows nothing of several hosts."""
    user, at, _ = parts.netloc.rpartition("@")
    plain = urlunsplit(("redis", f"{user}{at}host", "", parts.query, ""))
    try:
        settings: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
    except ValueError:
        raise LinkError(shown, "has a query with a value that is not one") from None
    del settings["host"]
    if not settings.keys() <= _QUERY:  # what else there is may be the rest of a password
        raise LinkError(shown, f"may have a query of {', '.join(sorted(_QUERY))} and nothing else")
    return settings
