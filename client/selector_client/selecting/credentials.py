"""Credentials for a sidecar: TLS certificates and a token, from files that may be rotated."""

import logging
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from selector_proto import certificates
from selector_proto.contract import BRACKETS, MAX_SOCKET_PATH_BYTES, is_local, lacks_brackets, socket_path
from selector_proto.environment import unknown, variable_of

from selector_client.errors import Untrusted

log = logging.getLogger(__name__)

MAX_TOKEN_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class Access:
    """Whom a client trusts, and what it shows to the sidecar. What is left out comes from the environment: SELECTOR_TLS
    (1 or 0), SELECTOR_CA_FILE and so on. On a unix socket, which the kernel guards, only the token counts.

    TLS is used if `tls` says so, or if it is None and one of `ca_file`, `certificate_file` and `key_file` is given. The
    files are PEM and are read for each new connection. The token is the first line of `token_file` that is not empty
    and does not begin with #; it is read for each call.
    """

    tls: bool | None = None
    ca_file: str | Path | None = None  # lists who may sign the sidecar's certificate; None: public authorities
    certificate_file: str | Path | None = None  # identifies this side, where the sidecar wants that
    key_file: str | Path | None = None  # may be left out if the certificate's file holds the key too
    server_name: str | None = None  # is the name in the sidecar's certificate, if the address has another one
    token_file: str | Path | None = None
    plaintext_token: bool | None = None  # lets the token travel without TLS, where something else encrypts

    @classmethod
    def of(cls, address: str, **given: Any) -> "Access":
        """Returns what is `given`, and the environment's values for the rest. Raises ValueError for values that cannot
        be, and for an address that gRPC would take for another, or not at all."""
        _check_address(address)
        for variable, nearest in unknown(os.environ, SETTINGS):
            if nearest and abs(len(variable) - len(nearest)) <= 2:  # others may be the sidecar's
                _misspelt(variable, nearest)
        values = {
            one.name: given[one.name] if given.get(one.name) is not None else _env(one.name) for one in fields(cls)
        }
        access = cls(token_file=values["token_file"]) if address.startswith("unix:") else cls(**values)
        _check(access, address)
        return access

    @property
    def secure(self) -> bool:
        """Whether TLS is used."""
        if self.tls is not None:
            return self.tls
        return any(file is not None for file in (self.ca_file, self.certificate_file, self.key_file))

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Returns the credentials of a new connection, or None if it has no TLS. Raises Untrusted if a file cannot be
        read now."""
        if not self.secure:
            return None
        try:
            found = certificates.read(self.ca_file, self.certificate_file, self.key_file)
        except certificates.CertificateError as error:
            raise Untrusted("untrusted", str(error)) from error
        return grpc.ssl_channel_credentials(found.ca, found.key, found.certificate)

    def metadata(self) -> list[tuple[str, str]]:
        """Returns the metadata that carry the token of a call. Raises Untrusted if the token cannot be read now."""
        if self.token_file is None:
            return []
        try:
            return [("authorization", f"Bearer {_token(self.token_file)}")]
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise Untrusted("untrusted", f"token_file is {self.token_file}; {why}") from None


ACCESS_FIELDS = frozenset(one.name for one in fields(Access))
# What the environment says to a trainer, as SELECTOR_<NAME>: the above, SELECTOR_OFF, and an address for its own use.
SETTINGS = (*sorted(ACCESS_FIELDS), "off", "address")


@cache
def _misspelt(variable: str, nearest: str) -> None:
    """Says so, once in a process."""
    words = "%s is in the environment, but a trainer reads nothing of that name; did you mean %s?"
    log.warning(words, variable, nearest)


def _check_address(address: str) -> None:
    """Raises ValueError."""
    path = socket_path(address)
    if path is not None and not 1 <= len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        limit = f"the path of a unix socket must have 1 to {MAX_SOCKET_PATH_BYTES} bytes"
        raise ValueError(f"address is {address!r}; {limit}")
    if lacks_brackets(address):
        raise ValueError(f"address is {address!r}; {BRACKETS}")


def _check(access: Access, address: str) -> None:
    """Raises ValueError for values that contradict one another or cannot be read."""
    for name in ("ca_file", "certificate_file", "key_file", "server_name"):
        if getattr(access, name) is not None and not access.secure:
            raise ValueError(f"{name} is {getattr(access, name)}; needs TLS, and tls is {access.tls}")
    if access.secure:
        certificates.read(access.ca_file, access.certificate_file, access.key_file)
    if access.token_file is None:
        return
    if not (access.secure or access.plaintext_token or is_local(address)):
        limit = f"others can read it on the way to {address}: needs TLS (ca_file), or plaintext_token=True"
        raise ValueError(f"token_file is {access.token_file}; {limit}")
    try:
        _token(access.token_file)
    except (OSError, ValueError) as error:
        raise ValueError(f"token_file is {access.token_file}; {getattr(error, 'strerror', None) or error}") from None


def _token(file: str | Path) -> str:
    """Reads the token. Raises OSError, and ValueError, whose message never quotes the token."""
    lines = certificates.read_file(file, MAX_TOKEN_FILE_BYTES).split(b"\n")
    for line in map(bytes.strip, lines):
        if line and not line.startswith(b"#"):
            if not line.isascii() or not all(33 <= byte <= 126 for byte in line):
                raise ValueError("its token must be printable ASCII without spaces")
            return line.decode()
    raise ValueError("has no token")


def _env(name: str) -> Any:
    value = os.environ.get(variable_of(name)) or None
    if name not in ("tls", "plaintext_token") or value is None:
        return value
    if value.lower() not in ("0", "1", "false", "true"):
        raise ValueError(f"{variable_of(name)} is {value!r}; must be 1 or 0")
    return value.lower() in ("1", "true")
