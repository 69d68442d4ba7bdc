"""`selector health` against real sidecars, and a sidecar that is stopped before it serves."""

import re
import signal
import time
from pathlib import Path

import grpc
import pytest
from selector_tools import cli
from support.certificates import certificates
from support.processes import READY, SlowClient, eventually, free_port, spawn
from support.redis_servers import needs
from support.secured import DATA_TOKEN, channel_credentials

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"


@pytest.fixture
def health(capsys, monkeypatch):
    """Runs `selector health` here: exit status, and all that it printed, which is one line."""
    for name in ("SELECTOR_HEALTH_LISTEN", "SELECTOR_LISTEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, **environment) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        status = cli.main(["health", *arguments])
        out, err = capsys.readouterr()
        assert (out, err)[status == 0] == ""
        [line] = (out + err).splitlines()
        return status, line

    return run


@pytest.mark.parametrize("service", [None, "", READY])
def test_a_sidecar_that_serves(health, plain_server, service):
    flags = () if service is None else ("--service", service)
    assert health(plain_server.address, *flags) == (0, "SERVING")


def test_a_service_that_there_is_not(health, plain_server):
    assert health(plain_server.address, "--service", "nobody") == (
        1,
        f"selector health: {plain_server.address}: NOT_FOUND: it knows no 'nobody'",
    )


def test_its_default_address_is_that_of_the_sidecar_with_its_environment(health, plain_server):
    everywhere = f"0.0.0.0:{plain_server.port}"
    for listen in (everywhere, f"[::]:{plain_server.port}"):
        assert health(SELECTOR_LISTEN=listen) == (0, "SERVING")
    nothing = f"127.0.0.1:{free_port()}"
    status, line = health(SELECTOR_HEALTH_LISTEN=nothing)
    assert status == 1
    assert line.startswith(f"selector health: {nothing}: UNAVAILABLE: ")
    assert health(SELECTOR_HEALTH_LISTEN=everywhere, SELECTOR_LISTEN=nothing) == (0, "SERVING")


def test_the_images_check_is_answered_beside_tls_and_tokens(health, sidecar, tmp_path):
    """With the environment of its container, where nothing says whom to trust; at ports of ours."""
    needs("openssl")
    files = certificates(tmp_path)
    (token := tmp_path / "token").write_text(DATA_TOKEN)
    hosts = dict(re.findall(r"SELECTOR_(HEALTH_LISTEN|LISTEN)=([^\s:]+|\[::\]):\d+", DOCKERFILE.read_text()))
    environment = {f"SELECTOR_{name}": f"{host}:{free_port()}" for name, host in hosts.items()}
    flags = {
        "tls_certificate_file": files["server.pem"],
        "tls_key_file": files["server.key"],
        "tls_client_ca_file": files["ca.pem"],
        "token_file": token,
    } | {name.removeprefix("SELECTOR_").lower(): address for name, address in environment.items()}
    port = int(environment["SELECTOR_LISTEN"].rpartition(":")[2])
    sidecar(flags, port=port, dial=lambda address: grpc.secure_channel(address, channel_credentials(files)))
    assert health(**environment, SELECTOR_TOKEN_FILE=str(token)) == (0, "SERVING")


def test_a_proxy_of_the_environment_is_not_asked(health, plain_server):
    proxy = f"http://127.0.0.1:{free_port()}"
    assert health(plain_server.address, http_proxy=proxy, grpc_proxy=proxy) == (0, "SERVING")


def test_a_unix_socket_and_a_process_that_is_stopped(health, sidecar, tmp_path):
    address = f"unix:{tmp_path}/selector.sock"
    status, line = health(address)
    assert status == 1
    assert "No such file" in line
    running = sidecar({"listen": address}, wait=False)
    eventually(lambda: health(address)[0] == 0, 60)
    running.signal(signal.SIGSTOP)
    before = time.monotonic()
    status, line = health(address, "--timeout", "0.5")
    assert status == 1
    assert line.startswith(f"selector health: {address}: DEADLINE_EXCEEDED")
    assert time.monotonic() - before < 5


def test_a_draining_sidecar_does_not_serve(health, sidecar):
    running = sidecar()
    waiting = SlowClient(running)
    running.wait_pending(1)
    running.signal(signal.SIGTERM)
    eventually(lambda: health(running.address)[1].endswith(f": {READY} is NOT_SERVING"))
    assert health(running.address, "--service", "")[1].endswith(": the process is NOT_SERVING")
    waiting.finish()
    running.hang_up()
    assert running.process.wait(20) == 0


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:99999", "host:-1", "unix:", "host:1x", "::1:50051"]
)
def test_what_is_no_address(health, address):
    assert health(address) == (
        2,
        f"selector health: ADDRESS is {address!r}; must be host:port, an IPv6 address in brackets, or unix:/path",
    )


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_what_is_no_timeout(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["health", "localhost:1", "--timeout", seconds])
    assert ended.value.code == 2
    assert f"'{seconds}' is not a time" in capsys.readouterr().err


def test_sigterm_ends_a_sidecar_that_is_still_starting():
    """As the first process of a PID namespace has no default actions, it must have a handler while it loads."""
    code = (
        "import signal, sys\n"
        "from selector_tools import cli, serve\n"
        "def load(arguments):\n"
        "    print('loading', flush=True)\n"
        "    while True: pass\n"
        "serve._serve = load\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    process = spawn("-c", code, stdout=-1, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
