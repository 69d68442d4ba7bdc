"""A sidecar that lets nobody in without a certificate and a token, and the files for both."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from support.processes import Sidecar

DATA_TOKEN, ADMIN_TOKEN = "d" * 40, "a" * 40


@dataclass
class Secured:
    """`given` are the client's settings that open it; `folder` has the files that the server reads."""

    server: Sidecar
    given: dict
    folder: Path
    files: dict[str, Path]
    admin_address: str
    health_address: str
    page_address: str

    def serve_certificate(self, name: str) -> None:
        """Puts a certificate and its key in place of those served, each at once."""
        for suffix in (".key", ".pem"):
            self.put(f"served{suffix}", (self.files["ca.pem"].parent / f"{name}{suffix}").read_bytes())

    def put(self, name: str, data: bytes) -> None:
        new = self.folder / f"{name}.new"
        new.write_bytes(data)
        new.chmod(0o600)
        new.rename(self.folder / name)

    def reloads(self, file: str, result: str) -> float:
        return self.server.metrics()("selector_secret_reloads_total", file=file, result=result)


def channel_credentials(files):
    ca, key, certificate = (files[name].read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    return grpc.ssl_channel_credentials(ca, key, certificate)
