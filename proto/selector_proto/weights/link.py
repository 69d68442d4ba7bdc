"""Links: what says where weights travel. A link is a URL and what a URL should not say, whatever the transport.

Nothing here connects, and no error tells a user or a password.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult

# RFC 3986, appendix B. Python's own parser takes one host; newer ones take none in brackets after the first.
_URL = re.compile(r"([^:/?#]+):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
# An IPv6 address may have a zone, before which a URL has %25 (RFC 6874).
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?")
HIDDEN = "***"


class LinkError(ValueError):
    """A link that cannot be: `option` names the option that is wrong and is empty for the URL, `value` is what it was
    and `limit` what was expected. Secrets are left out."""

    def __init__(self, value: object, limit: str, option: str = "") -> None:
        self.value, self.limit, self.option = str(value), limit, option
        super().__init__(f"{value}; {limit}")


@dataclass(frozen=True)
class LinkOptions:
    """What a URL should not say. Files are PEM, and the password's is text; a key file must not be encrypted."""

    ca_file: str | Path | None = None  # who may sign the server's certificate; None: whom this host trusts
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None  # None: it is in the certificate's file
    username: str | None = None
    password_file: str | Path | None = None
    sentinel_password_file: str | Path | None = None  # of the Sentinels themselves
    timeout_seconds: float = 5.0  # for a connection, and for each command


def split(url: str) -> SplitResult | None:
    """The parts of a URL, its scheme in lower case; None if it is none."""
    match = _URL.fullmatch(url)
    if match is None or not url.isprintable():
        return None
    scheme, *rest = (part or "" for part in match.groups())
    return SplitResult(scheme.lower(), *rest)


def masked(url: str) -> str:
    """The URL without user, password and query; HIDDEN for one that cannot be parsed, of which nothing is shown."""
    parts = split(url)
    if parts is None:
        return HIDDEN
    user, at, hosts = parts.netloc.rpartition("@")
    if "[" in user or "]" in user:
        return HIDDEN
    if hosts and not all(HOST.fullmatch(host) for host in hosts.split(",")):
        return HIDDEN
    # A password with a '/', '?' or '#' in it ends the host early, and its rest stands where the path is.
    rest = parts.path if parts.path or at else f"{parts.query}{parts.fragment}"
    if "@" in rest and (parts.scheme not in ("unix", "file") or (parts.scheme == "unix" and hosts)):
        return HIDDEN
    return f"{parts.scheme}://{hosts}{parts.path}"
