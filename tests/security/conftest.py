"""One secured sidecar for all tests here; they leave it as they find it."""

import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.certificates import certificates
from support.processes import free_port
from support.redis_servers import needs
from support.secured import ADMIN_TOKEN, DATA_TOKEN, Secured, channel_credentials


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    needs("openssl")
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def secured(files, start_sidecars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for source, name in (("server.pem", "served.pem"), ("server.key", "served.key"), ("ca.pem", "clients.pem")):
        shutil.copy(files[source], folder / name)
    for name, token in (("tokens", DATA_TOKEN), ("admin-tokens", ADMIN_TOKEN)):
        (folder / name).write_text(f"# of the tests\n{token}\n")
        (folder / name).chmod(0o600)
    (folder / "served.key").chmod(0o600)
    admin, probes, page = (f"127.0.0.1:{free_port()}" for _ in range(3))
    flags = {
        "tls_certificate_file": folder / "served.pem",
        "tls_key_file": folder / "served.key",
        "tls_client_ca_file": folder / "clients.pem",
        "token_file": folder / "tokens",
        "admin_token_file": folder / "admin-tokens",
        "admin_listen": admin,
        "health_listen": probes,
        "inspect_listen": page,
    }
    given = {"ca_file": files["ca.pem"], "certificate_file": files["client.pem"], "key_file": files["client.key"]}

    def dial(address):
        return grpc.secure_channel(address, channel_credentials(files))

    with start_sidecars() as start:
        server = start(flags, dial=dial)
        yield Secured(server, given | {"token_file": folder / "tokens"}, folder, files, admin, probes, page)


@pytest.fixture
def losses():
    """Two arrays for Selector.select_losses."""
    return np.random.default_rng(0).random((2, 40), dtype=np.float32)


@pytest.fixture(scope="session")
def loopback(start_sidecars, tmp_path_factory):
    """A sidecar with tokens, without TLS, with one address for all, without reflection, for three connections."""
    folder = tmp_path_factory.mktemp("tokens")
    for name, token in (("data", DATA_TOKEN), ("admin", ADMIN_TOKEN)):
        (folder / name).write_text(token)
    (folder / "admin").chmod(0o644)
    flags = {"token_file": folder / "data", "admin_token_file": folder / "admin"}
    with start_sidecars() as start:
        yield start(flags | {"reflection": "false", "max_connections": 3})
