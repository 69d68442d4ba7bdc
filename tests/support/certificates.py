"""Certificates that openssl makes."""

import subprocess
from pathlib import Path


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, a server's certificate for 127.0.0.1, and a client's; and an authority that signed none of them."""
    authority(folder, "ca")
    authority(folder, "other")
    for name, subject in (("server", "IP:127.0.0.1"), ("client", "DNS:trainer")):
        sign(folder, name, subject)
    names = ("ca.pem", "ca.key", "other.pem", "other.key", "server.pem", "server.key", "client.pem", "client.key")
    return {name: folder / name for name in names}


def authority(folder: Path, name: str) -> None:
    """Writes its certificate, name.pem, and name.key."""
    _openssl(folder, "req", "-x509", *_new_key(name), "-days", 2, "-subj", f"/CN={name}", "-out", f"{name}.pem")


def sign(folder: Path, name: str, subject: str, *, by: str = "ca", days: int = 2) -> None:
    """Writes name.pem and name.key, signed by an authority; negative `days`: it has expired."""
    (folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
    _openssl(folder, "req", *_new_key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
    signed = ("-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial", "-days", days, "-extfile", f"{name}.ext")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


def _openssl(folder: Path, *arguments) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30, cwd=folder)


def _new_key(name: str) -> tuple[str, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"
