"""The page's server: who is let in, and what browsers can do to it."""

import asyncio
import hashlib
import http.client
import json
import re
import resource
import socket
import threading
import time
from contextlib import contextmanager
from importlib import resources

import pytest
from selector_proto.v1 import inspection_pb2 as pb
from support.made_up_source import CAPTIONS, MadeUpSource
from support.processes import eventually

from selector_server.errors import PermissionDenied, Unauthenticated
from selector_server.inspection.web import http as page_http
from selector_server.inspection.web.server import PageServer
from selector_server.inspection.web.shared import BURST, REQUESTS_A_SECOND, Pace, Shared

SHARED_SECONDS = "selector_server.inspection.web.shared.SHARED_SECONDS"

ADMIN, TRAINER = "Bearer admin", "Bearer trainer"
METHODS = ("GetOverview", "GetSuperBatch", "ListPictures", "GetSample", "ListSlices", "DownloadSuperBatches")


def admins_only(header) -> None:
    if header == TRAINER:
        raise PermissionDenied("authorization", "a token for data calls", "admin calls need one of their own")
    if header != ADMIN:
        raise Unauthenticated("authorization", "missing", "send a token")


@contextmanager
def served(source, authorise=lambda header: None, **options):
    server = PageServer(source, "127.0.0.1:0", authorise, **options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def source():
    return MadeUpSource(super_batches=5)


@pytest.fixture(scope="module")
def page(source):
    with served(source) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(source):
    with served(source, admins_only) as server:
        yield server


def call(server, path, body=None, *, method=None, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def ask(server, method, request=None, **headers):
    return call(server, f"/api/{method}", json.dumps(request or {}), **headers)


def test_the_page_and_all_that_it_loads_forbid_everything_else(page):
    for path in ("/", "/app.js", "/style.css", "/vendor/uPlot.iife.min.js", "/icon.svg", "/schema.json"):
        status, headers, body = call(page, path)
        assert status == 200
        assert body
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    html = call(page, "/")[2].decode()
    assert "<script>" not in html
    assert "style=" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_the_charts_are_the_ones_that_their_makers_published():
    folder = resources.files("selector_server.inspection.web") / "static" / "vendor"
    told = dict(re.findall(r"\| (\S+\.(?:js|css)) \| (\w{64}) \|", (folder / "README.md").read_text()))
    there = {one.name for one in folder.iterdir()} - {"README.md", "LICENSE.uPlot"}
    assert told == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}


def test_a_file_that_a_browser_has_is_not_sent_again(page):
    status, headers, _ = call(page, "/app.js")
    assert status == 200
    again, _, body = call(page, "/app.js", **{"if-none-match": headers["etag"]})
    assert (again, body) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/../page.py", "/%2e%2e/page.py", "/static/app.js", "/vendor/LICENSE.uPlot", "/x" * 2000]
)
def test_there_is_nothing_else(page, path):
    assert call(page, path)[0] == 404


def test_an_answer_is_the_message_itself(page, source):
    status, headers, body = ask(page, "GetSuperBatch", {"superBatch": 3})
    assert (status, headers["cache-control"]) == (200, "no-store")
    expected = source.get_super_batch(pb.GetSuperBatchRequest(super_batch=3))
    assert body == expected.SerializeToString()
    assert pb.ListPicturesResponse.FromString(ask(page, "ListPictures")[2]).galleries
    status, headers, body = ask(page, "DownloadSuperBatches", {"last": 2})
    assert (status, body[:4], len(body)) == (200, b"PAR1", 200_008)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer expired", 401), ("", 401), (TRAINER, 403), ("Basic YWRtaW46", 401)],
    ids=["none", "expired", "empty", "trainer", "basic"],
)
def test_no_byte_of_content_without_an_admins_token(guarded, method, header, status):
    headers = {} if header is None else {"authorization": header}
    found, _, body = ask(guarded, method, **headers)
    assert found == status
    assert set(json.loads(body)) == {"message", "field", "value", "limit"}
    for words in (*CAPTIONS, "clip-b16", "7001"):
        assert words.encode() not in body
    assert ask(guarded, method, {"id": "7001"} if method == "GetSample" else {}, authorization=ADMIN)[0] == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "request"),
        (b"\xff\xfe", "request"),
        (b"[" * 5000, "request"),
        (b'{"superBatch": -1}', "request"),
        (b'{"nothing": 1}', "request"),
        (b'{"superBatch": 1e30}', "request"),
    ],
    ids=["cut", "bytes", "deep", "negative", "unknown", "huge"],
)
def test_what_is_no_request_is_refused(page, body, field):
    status, _, told = call(page, "/api/GetSuperBatch", body)
    assert (status, json.loads(told)["field"]) == (400, field)


def test_a_super_batch_that_is_not_kept_is_told_with_its_limit(page):
    status, _, body = ask(page, "GetSuperBatch", {"superBatch": 10**9})
    assert status == 409
    assert "must be one that is kept, 1 to 5" in json.loads(body)["limit"]


def test_a_million_ids_are_too_many(page, source):
    source.asked.clear()
    connection = socket.create_connection(("127.0.0.1", page.port), timeout=10)
    with connection:
        head = b"POST /api/GetSample HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 8000000\r\n\r\n"
        connection.sendall(head + b'{"id": "' + b"7" * 100_000)
        assert everything(connection).startswith(b"HTTP/1.1 413")
    status, _, _ = ask(page, "GetSample", {"id": [str(i) for i in range(1000)]})
    assert status == 400
    assert not source.asked


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncookie: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /api/GetOverview HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
    ids=["no-host", "tls", "long-head", "negative-length", "bad-chunk"],
)
def test_what_is_no_http_is_refused(page, sent, status):
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(sent)
        assert everything(connection).split(b" ")[1] == status


def test_other_methods_are_refused(page):
    assert call(page, "/", method="DELETE")[0] == 405
    assert call(page, "/api/GetOverview", method="GET")[0] == 405
    assert ask(page, "PinWeights")[0] == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:80", 200), ("192.168.1.5:80", 200), ("evil.example:80", 403)],
)
def test_a_site_that_gives_our_address_its_own_name_reads_nothing(page, host, status):
    assert ask(page, "GetOverview", host=host)[0] == status


def test_with_a_token_any_name_will_do(source):
    with served(source, admins_only, names=True) as server:
        assert ask(server, "GetOverview", host="selector.example", authorization=ADMIN)[0] == 200
        assert ask(server, "GetOverview", host="selector.example")[0] == 401


def test_an_unforeseen_error_keeps_its_words_to_itself(caplog):
    source = MadeUpSource(super_batches=1)
    source.broken = True
    with served(source) as server:
        for method in METHODS:
            status, _, body = ask(server, method)
            assert status == 500
            assert b"on purpose" not in body
    assert "on purpose" in caplog.text


def test_a_thousand_connections_keep_nobody_out(page):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    connections = []
    try:
        for _ in range(1000):
            connections.append(socket.create_connection(("127.0.0.1", page.port), timeout=10))
        assert ask(page, "GetOverview")[0] == 200
        still = [one for one in connections if not ended(one)]
        assert len(still) <= page_http.MAX_CONNECTIONS
    finally:
        for one in connections:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def everything(connection) -> bytes:
    """What is sent until the connection ends, in one way or the other."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def ended(connection) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_browser_that_never_reads_holds_nothing(source, monkeypatch):
    monkeypatch.setattr(page_http, "WRITE_SECONDS", 0.5)
    given_up, cut = threading.Event(), page_http._Connection.cut

    def told(self) -> None:
        if self._writer.transport.get_write_buffer_size():
            given_up.set()
        cut(self)

    monkeypatch.setattr(page_http._Connection, "cut", told)
    with served(source) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        with silent:
            body = b'{"last": 500}'  # 50 MB
            head = b"POST /api/DownloadSuperBatches HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            silent.sendall(head + body)
            assert given_up.wait(20)
            assert ask(server, "GetOverview")[0] == 200
            # What lay in the kernel's buffers comes, and then the end: the rest was given up.
            assert len(everything(silent)) < 40_000_000


def test_a_browser_that_says_nothing_is_sent_away(source, monkeypatch):
    monkeypatch.setattr(page_http, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(page_http, "REQUEST_SECONDS", 0.3)
    with served(source) as server:
        for said in (b"", b"POST /api/GetOverview HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
                silent.sendall(said)
                assert everything(silent) == b""


def test_requests_of_one_connection_are_answered_in_turn(page):
    one = b"POST /api/ListSlices HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall(one + one + one.replace(b"host", b"connection: close\r\nhost"))
        stream = connection.makefile("rb")
        assert stream.read().count(b"HTTP/1.1 200") == 3


def test_a_source_that_hangs_does_not_hold_the_files():
    source = MadeUpSource(super_batches=1)
    source.wait.clear()
    with served(source) as server:
        threads = [threading.Thread(target=ask, args=(server, "GetSample", {"id": str(i)})) for i in range(4)]
        for one in threads:
            one.start()
        eventually(lambda: source.asked)
        assert call(server, "/app.js")[0] == 200
        source.wait.set()
        for one in threads:
            one.join(20)


def test_who_asks_the_same_at_once_costs_once(monkeypatch):
    monkeypatch.setattr(SHARED_SECONDS, 60.0)  # a busy machine may not be back within half a second

    async def run():
        shared, made, go = Shared(), [], asyncio.Event()

        async def make():
            made.append(1)
            await go.wait()
            return b"answer"

        waiting = [asyncio.create_task(shared.get("key", make)) for _ in range(1000)]
        other = asyncio.create_task(shared.get("other", make))
        await asyncio.sleep(0)
        waiting[0].cancel()
        go.set()
        answers = await asyncio.gather(*waiting[1:], other)
        assert set(answers) == {b"answer"}
        return len(made)

    assert asyncio.run(run()) == 2


def test_an_answer_that_failed_fails_for_all_who_asked_then_and_is_asked_again_later(monkeypatch):
    monkeypatch.setattr(SHARED_SECONDS, 60.0)

    async def run():
        shared, made = Shared(), []

        async def make():
            made.append(1)
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                await shared.get("key", make)
        monkeypatch.setattr(SHARED_SECONDS, 0.0)
        for _ in range(2):
            with pytest.raises(LookupError):
                await Shared().get("key", make)
        return len(made)

    assert asyncio.run(run()) == 3


def test_more_requests_than_a_bound_wait_for_their_turn(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    async def run():
        pace = Pace()
        await pace.wait()
        monkeypatch.setattr(asyncio, "sleep", sleep)
        for _ in range(round(BURST) + 49):
            await pace.wait()

    asyncio.run(run())
    assert 40 <= len(slept) <= 50
    assert max(slept) == pytest.approx(50 / REQUESTS_A_SECOND, rel=0.3)


def test_an_end_waits_for_nobody(source):
    server = PageServer(source, "127.0.0.1:0", lambda header: None)
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(20)]
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 5
    assert "page" not in {thread.name for thread in threading.enumerate() if thread is server._thread}
    for one in connections:
        one.close()


def test_an_address_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            PageServer(MadeUpSource(super_batches=0), f"127.0.0.1:{taken.getsockname()[1]}", lambda header: None)
