"""Clients that want too much of a connection: metadata, pings, silence, connections; and slow scrapers."""

import socket
import threading
import time
import urllib.request
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Gauge
from support.processes import eventually

from selector_server.rpc.server import HANDSHAKE_SECONDS
from selector_server.telemetry import metrics_server
from selector_server.telemetry.metrics_server import MAX_CONNECTIONS, MetricsServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
PING = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
GOAWAY = 7


def dial(port) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", port), 20)
    stream.settimeout(20)
    return stream


@pytest.mark.parametrize("size", [20_000, 5_000_000])
def test_huge_metadata_is_refused(plain_server, size):
    with grpc.insecure_channel(plain_server.address) as channel:
        call = channel.unary_unary("/selector.v1.SelectorService/GetServerInfo", None, None)
        for metadata in ([("x", "a" * size)], [(f"x{i}", "a" * 90) for i in range(size // 100)]):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert plain_server.info().policies
    plain_server.must_live()


def test_a_flood_of_pings_ends_the_connection(plain_server):
    with dial(plain_server.port) as stream:
        stream.sendall(PREFACE)
        stream.sendall(PING * 20)
        data = b""
        while b"too_many_pings" not in data:
            piece = stream.recv(65536)
            assert piece, f"closed after {data!r}"
            data += piece
    assert plain_server.info().policies


def test_who_connects_and_says_nothing_is_cut(secured):
    """Before TLS began, and on the plain listener for probes before HTTP/2 did."""
    ports = [secured.server.port, int(secured.health_address.rpartition(":")[2])]
    streams, began = [dial(port) for port in ports], time.monotonic()
    for stream in streams:
        with stream:
            while stream.recv(65536):  # the server's own settings
                pass
    assert time.monotonic() - began < HANDSHAKE_SECONDS + 15


def test_connections_are_bounded_and_given_back(loopback):
    loopback.hang_up()
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(loopback.address, own) for _ in range(4)]

    def answers(channel) -> bool:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        except grpc.RpcError:
            return False

    eventually(lambda: answers(channels[0]))  # our former connection may be open still
    eventually(lambda: all(map(answers, channels[:3])))
    assert not answers(channels[3])
    channels[0].close()
    eventually(lambda: answers(channels[3]))
    for channel in channels[1:]:
        channel.close()


@pytest.fixture
def metrics():
    registry = CollectorRegistry()
    Gauge("answer", "Of all.", registry=registry).set(42)
    server = MetricsServer(registry, "127.0.0.1:0")
    yield server
    server.close()


def scrape(server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as reply:
        return reply.read().decode()


def handlers() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def test_slow_scrapers_keep_nobody_away(metrics):
    before = handlers()
    streams = [dial(metrics.port) for _ in range(100)]
    try:
        for stream in streams:
            with suppress(OSError):  # cut already
                stream.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert "answer 42.0" in scrape(metrics)
        eventually(lambda: handlers() - before <= MAX_CONNECTIONS)
    finally:
        for stream in streams:
            stream.close()


def test_a_silent_scraper_is_cut(metrics, monkeypatch):
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.3)
    with dial(metrics.port) as stream:
        stream.sendall(b"GET /metrics")
        began = time.monotonic()
        assert stream.recv(100) == b""
        assert time.monotonic() - began < 5


def test_a_huge_request_line_and_headers(metrics):
    for text in (b"GET /" + b"x" * 100_000, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"):
        with dial(metrics.port) as stream:
            stream.sendall(text + b"\r\n\r\n")
            assert stream.recv(100).split()[1] in (b"414", b"431")
    assert "answer 42.0" in scrape(metrics)
