"""`selector inspect` and --inspect-listen with real sidecars: the page of one elsewhere, of a folder, and its door."""

import http.client
import json
import signal
import ssl
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from selector_client import Selector
from selector_proto.v1 import inspection_pb2 as pb
from support.certificates import certificates
from support.processes import eventually, free_port, one_line, run_serve, spawn
from support.redis_servers import needs
from support.secured import ADMIN_TOKEN, DATA_TOKEN

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["InspectionService"].methods]
SECRET = "a tag that is a secret"


def ask(url, method, token="", request=None, context=None) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = json.dumps(request or {}).encode()
    question = urllib.request.Request(f"{url}api/{method}", body, headers, method="POST")
    try:
        with urllib.request.urlopen(question, timeout=20, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def select(address, count=3, **access) -> None:
    """Selects that often by losses, with tags."""
    with Selector(address, policy="independent", **access) as selector:
        for seed in range(count):
            learner, reference = np.random.default_rng(seed).random((2, 40), dtype=np.float32)
            selector.select_losses(learner, reference, step=10 * seed, tags=[SECRET] * 40)


def overview(url, token="", context=None) -> pb.GetOverviewResponse:
    status, body = ask(url, "GetOverview", token, context=context)
    assert status == 200, body
    return pb.GetOverviewResponse.FromString(body)


@pytest.fixture
def inspect(tmp_path):
    """inspect(target, flag, …) is the address and the token that `selector inspect` prints."""
    processes = []

    def start(target, *flags):
        process = spawn("-m", "selector_tools.cli", "inspect", target, *flags, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        url, _, token = process.stdout.readline().strip().partition("#token=")
        return url, token

    yield start
    for one in processes:
        one.send_signal(signal.SIGINT)
        assert one.wait(20) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    needs("openssl")
    folder = tmp_path_factory.mktemp("page")
    for name, token in (("data", DATA_TOKEN), ("admin", ADMIN_TOKEN)):
        (folder / name).write_text(token)
        (folder / name).chmod(0o600)
    return certificates(folder) | {"data": folder / "data", "admin": folder / "admin"}


def test_a_sidecar_serves_its_page(sidecar):
    page = f"127.0.0.1:{free_port()}"
    server = sidecar({"inspect_listen": page})
    url = f"http://{page}/"
    assert f"the inspector's page is at {url}" in server.text
    assert overview(url).totals.selections == 0
    select(server.address)
    eventually(lambda: overview(url).totals.selections == 3)
    assert not overview(url).content
    assert SECRET.encode() not in ask(url, "ListSlices")[1]
    server.signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_a_trainers_token_opens_no_page_and_tls_is_that_of_the_other_ports(sidecar, files):
    page = f"127.0.0.1:{free_port()}"
    flags = {
        "inspect_listen": page,
        "inspect_content": "true",
        "token_file": files["data"],
        "admin_token_file": files["admin"],
        "tls_certificate_file": files["server.pem"],
        "tls_key_file": files["server.key"],
    }
    server = sidecar(flags, wait=False)
    eventually(lambda: "the inspector's page is at https://" in server.text, 60, lambda: server.text, server.must_live)
    select(server.address, ca_file=files["ca.pem"], token_file=files["data"])
    url, context = f"https://{page}/", ssl.create_default_context(cafile=files["ca.pem"])
    eventually(lambda: SECRET.encode() in ask(url, "ListSlices", ADMIN_TOKEN, context=context)[1])
    for method in METHODS:
        for token, expected in (("", 401), ("x" * 40, 401), (DATA_TOKEN, 403)):
            status, body = ask(url, method, token, context=context)
            assert status == expected
            assert SECRET.encode() not in body
    plain = http.client.HTTPConnection(page, timeout=10)
    plain.request("GET", "/")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        plain.getresponse().read()


def test_a_sidecar_elsewhere_has_a_page_here(sidecar, inspect, files):
    server = sidecar({"inspect": "true", "inspect_content": "true", "admin_token_file": files["admin"]})
    select(server.address)
    url, token = inspect(server.address, "--token-file", files["admin"])
    assert len(token) >= 40
    eventually(lambda: overview(url, token).totals.selections == 3)
    for method, request in (
        ("GetSuperBatch", {}),
        ("ListPictures", {}),
        ("ListSlices", {}),
        ("DownloadSuperBatches", {"last": 2}),
    ):
        status, body = ask(url, method, token, request)
        assert status == 200, body
    assert SECRET.encode() in ask(url, "ListSlices", token)[1]
    for other in ("", "x" * 43, ADMIN_TOKEN):
        status, body = ask(url, "ListSlices", other)
        assert (status, SECRET.encode() in body) == (401, False)
    server.stop()
    status, body = ask(url, "GetOverview", token, {"after": 7})  # What was asked a moment ago is still known.
    assert (status, json.loads(body)["field"]) == (503, "sidecar")


@pytest.mark.parametrize(
    ("flags", "access", "words"),
    [
        ({}, [], "start the server with --inspect"),
        ({"inspect": "true", "admin_token_file": "admin"}, [], "UNAUTHENTICATED"),
    ],
    ids=["not kept", "no token"],
)
def test_what_the_sidecar_refuses_is_told_on_the_page(sidecar, inspect, files, flags, access, words):
    server = sidecar({name: files.get(value, value) for name, value in flags.items()})
    url, token = inspect(server.address, *access)
    status, body = ask(url, "GetOverview", token)
    assert (status, words in json.loads(body)["message"]) == (409, True), body


def test_what_was_recorded_has_a_page_without_a_sidecar(sidecar, inspect, tmp_path):
    server = sidecar({"record": tmp_path / "record"})
    select(server.address)
    server.signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    url, token = inspect(tmp_path / "record")
    assert [one.trainer_step for one in overview(url, token).points] == [0, 10, 20]
    assert ask(url, "GetSuperBatch", token, {"superBatch": 2})[0] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("127.0.0.1:1", "--listen", "0.0.0.0:0"), "--listen is 0.0.0.0:0; must be loopback"),
        (("127.0.0.1:1", "--listen", "127.0.0.1"), "--listen is 127.0.0.1; must be loopback with a port"),
        (("127.0.0.1:1", "--listen", "127.0.0.1:99999"), "the port must be 0 to 65535"),
        (("::1:50051",), "must stand in brackets"),
        (("127.0.0.1:1", "--token-file", "/nowhere"), "token_file is /nowhere"),
        ((".",), "has no files that selector serve --record wrote"),
    ],
    ids=["everybody", "no port", "no such port", "no brackets", "no token file", "empty folder"],
)
def test_a_mistake_is_one_line(arguments, words, tmp_path):
    done = spawn("-m", "selector_tools.cli", "inspect", *arguments, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    _, errors = done.communicate(timeout=60)
    assert done.returncode == 2
    assert words in one_line(errors)


@pytest.mark.parametrize("listen", ["127.0.0.1", "unix:/tmp/page", "256.0.0.1:0"])
def test_an_address_that_cannot_be_is_told_at_the_start(listen):
    status, output = run_serve({"listen": "127.0.0.1:0", "metrics_listen": "none", "inspect_listen": listen})
    assert status == 2
    assert f"inspect_listen is {listen}; must be a free host:port" in output
