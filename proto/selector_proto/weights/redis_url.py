"""Where weights travel, as a URL: one Redis, its Sentinels, a Redis Cluster, or a folder that both sides see.

Nothing here connects, and no error tells a user or a password.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlunsplit

from redis.connection import parse_url

FORMS = (
    "must be redis://host:port/0, rediss://host:port/0, unix:///path, redis+sentinel://host:port,host:port/service/0, "
    "redis+cluster://host:port,host:port (rediss+… with TLS) or file:///folder"
)
_SCHEME = re.compile(r"(redis|rediss)(\+sentinel|\+cluster)?|unix|file")
# RFC 3986, appendix B. Python's own parser takes one host; newer ones none in brackets after the first.
_URL = re.compile(r"([^:/?#]+):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?")
# What may follow the question mark. redis-py takes anything there, and fails at the first command.
_QUERY = {"db", "username", "password", "protocol", "client_name", "health_check_interval"}
_QUERY |= {"socket_timeout", "socket_connect_timeout", "socket_keepalive"}
_QUERY |= {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}


class LinkError(ValueError):
    """A link that cannot be: `option` is the option that is wrong, empty for the URL; secrets are left out."""

    def __init__(self, value: object, limit: str, option: str = "") -> None:
        self.value, self.limit, self.option = str(value), limit, option
        super().__init__(f"{value}; {limit}")


@dataclass(frozen=True)
class Address:
    """What a URL says."""

    kind: Literal["single", "sentinel", "cluster", "folder"]
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    path: str = ""  # of a unix socket, or the folder
    settings: dict[str, Any] = field(default_factory=dict, repr=False)  # user, password, database and query


def parse(url: str) -> Address:
    """What `url` says, or LinkError."""
    parts, shown = _split(url), masked(url)
    if parts is None:
        raise LinkError(shown, FORMS)
    if not _SCHEME.fullmatch(parts.scheme):
        raise LinkError(shown, f"{FORMS}; its scheme is unknown")
    if shown == "***" or parts.fragment:
        raise LinkError(shown, f"{FORMS}; in a password / is %2F, ? %3F, # %23, [ %5B and ] %5D")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or not parts.path.startswith("/"):
            raise LinkError(shown, "must be file:///folder, a whole path and nothing else")
        return Address("folder", path=unquote(parts.path))
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or parts.path in ("", "/"):
            raise LinkError(shown, "must be unix:///path, with three slashes")
        return Address("single", path=unquote(parts.path), settings=_settings(parts, shown))
    return _servers(parts, shown)


def masked(url: str) -> str:
    """The URL without user, password and query; of one that cannot be parsed, nothing is shown."""
    parts = _split(url)
    if parts is None:
        return "***"
    user, at, hosts = parts.netloc.rpartition("@")
    if "[" in user or "]" in user:
        return "***"
    if hosts and not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        return "***"
    # A password with a '/', '?' or '#' in it ends the host early, and its rest stands where the path is.
    rest = parts.path if parts.path or at else f"{parts.query}{parts.fragment}"
    if "@" in rest and (parts.scheme not in ("unix", "file") or (parts.scheme == "unix" and hosts)):
        return "***"
    return f"{parts.scheme}://{hosts}{parts.path}"


def _split(url: str) -> SplitResult | None:
    match = _URL.fullmatch(url)
    if match is None or not url.isprintable():
        return None
    scheme, *rest = (part or "" for part in match.groups())
    return SplitResult(scheme.lower(), *rest)


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
    match = _HOST.fullmatch(text)
    if match is None or not 0 < (port := int(match[2] or default_port)) < 1 << 16:
        raise LinkError(shown, "must have ports from 1 to 65535")
    return match[1].strip("[]"), port


def _settings(parts: SplitResult, shown: str) -> dict[str, Any]:
    """User, password and query by redis-py's own parser, which knows nothing of several hosts."""
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
