"""Certificates and keys from PEM files, checked before anything is built on them. No error quotes what a file holds."""

import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# A file may have so many bytes. A bundle of every public authority has a quarter of that.
MAX_FILE_BYTES = 1 << 20


class CertificateError(ValueError):
    """A file cannot be used. `option` is ca_file, certificate_file or key_file, `value` is the file, and `limit` says
    what it must be."""

    def __init__(self, value: object, limit: str, option: str) -> None:
        self.value, self.limit, self.option = str(value), limit, option
        super().__init__(f"{option} is {value}; {limit}")


@dataclass(frozen=True)
class Certificates:
    """PEM texts: the authorities to trust, and this side's certificate with its key. None means that none was given."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def read_file(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file of at most `max_bytes`. Raises OSError and ValueError."""
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("must be a regular file")
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"must have at most {max_bytes} bytes")
    return data


def read(ca_file: str | Path | None, certificate_file: str | Path | None, key_file: str | Path | None) -> Certificates:
    """What the files hold now. Without a `key_file`, the key is in the certificate's file. Raises CertificateError."""
    if certificate_file is None and key_file is not None:
        raise CertificateError(key_file, "needs a certificate file too", "key_file")
    ca = _read(ca_file, "ca_file")
    certificate, key = _read(certificate_file, "certificate_file"), _read(key_file, "key_file")
    if ca is not None:
        try:
            ssl.create_default_context(cadata=ca.decode("ascii", "replace"))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(ca_file, f"must be a file of certificates: {_why(error)}", "ca_file") from None
    if certificate is not None:
        key = certificate if key is None else key
        try:
            with _as_files(certificate, key) as (certificate_name, key_name):
                # With an empty password, an encrypted key is an error instead of a question on the terminal.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_name, key_name, password="")
        except OSError as error:
            limit = f"must be a certificate with its key, not encrypted: {_why(error)}"
            raise CertificateError(certificate_file, limit, "certificate_file") from None
    return Certificates(ca, certificate, key)


def server_context(found: Certificates) -> ssl.SSLContext:
    """What a server of HTTP needs for TLS; with `ca`, clients must have a certificate that it signed."""
    assert found.certificate is not None and found.key is not None  # noqa: PT018
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _as_files(found.certificate, found.key) as (certificate_name, key_name):
        context.load_cert_chain(certificate_name, key_name, password="")
    if found.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=found.ca.decode("ascii", "replace"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _read(path: str | Path | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        raise CertificateError(path, f"cannot be read: {_why(error)}", option) from None


@contextmanager
def _as_files(*texts: bytes) -> Iterator[list[str]]:
    """Yields names of files in memory that hold the texts: `ssl` reads a key from a file only, and the one on disk may
    change meanwhile."""
    with ExitStack() as stack:
        names = []
        for text in texts:
            file = os.memfd_create("certificate", os.MFD_CLOEXEC)
            stack.callback(os.close, file)
            os.write(file, text)
            names.append(f"/proc/self/fd/{file}")
        yield names


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
