"""The commands of docs/security.md, run as they stand."""

import re
import shlex
import subprocess
from pathlib import Path

import grpc
import pytest
from selector_client import Denied, Selector, Untrusted
from selector_tools.cli import main
from support.processes import free_port
from support.redis_servers import needs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"


def test_its_commands_make_certificates_serve_and_ask(sidecar, losses, tmp_path, monkeypatch, capsys):
    needs("openssl", "bash")
    make, serve, ask = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", make], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(serve)[2:]
    flags = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert flags.pop("listen") == "0.0.0.0:50051"
    files = {name: Path(name).read_bytes() for name in ("ca.pem", "trainer.key", "trainer.pem")}
    credentials = grpc.ssl_channel_credentials(files["ca.pem"], files["trainer.key"], files["trainer.pem"])
    named = [("grpc.ssl_target_name_override", "sidecar.example")]
    port = free_port()
    server = sidecar(
        flags | {"listen": f"0.0.0.0:{port}"},
        port=port,
        dial=lambda address: grpc.secure_channel(address, credentials, named),
    )
    for line in ask.splitlines():
        command = shlex.split(line.replace("sidecar.example:50051", server.address))[1:]
        assert main([*command, "--server-name", "sidecar.example"]) == 0
    assert re.search(r"^state +off$", capsys.readouterr().out, re.MULTILINE)
    given = {name: value for name, value in re.findall(r'(\w+)="(\S+?)"', PAGE.read_text()) if name.endswith("_file")}
    assert given.keys() == {"ca_file", "certificate_file", "key_file", "token_file"}
    settings = {"server_name": "sidecar.example", "policy": "independent", "on_error": "raise"}
    with Selector(server.address, **given, **settings) as selector:
        assert selector.select_losses(*losses).fallback == ""
    with Selector(server.address, **given | settings | {"server_name": None}) as selector:
        with pytest.raises(Untrusted, match="another name"):
            selector.connect()
    with Selector(server.address, **given | settings | {"token_file": None}) as selector:
        with pytest.raises(Denied):
            selector.connect()
    assert "whoever reaches it may call" not in server.text


def test_a_sidecar_that_is_open_says_so(sidecar):
    port = free_port()
    server = sidecar({"listen": f"0.0.0.0:{port}"}, port=port)
    assert f"listen is 0.0.0.0:{port}: whoever reaches it may call; see docs/security.md" in server.text
