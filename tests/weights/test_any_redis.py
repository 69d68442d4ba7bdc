"""Every Redis, and what stands between: old ones, those with commands taken away, users with few rights, proxies."""

import logging
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from selector_client import WeightPublisher
from selector_proto.weights.store import StoreUnavailable
from selector_proto.weights.transports import open_store
from support.processes import eventually
from support.redis_ways import SERVERS

from selector_server.weights.versions import SyncState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weight-sync.md"
TAKEN_AWAY = 'rename-command {} ""'


@pytest.mark.parametrize("program", SERVERS)
def test_a_redis_without_hello_and_all_that_can_be_done_without(start, way, caplog, program):
    """As managed ones are, and Redis before version 6."""
    missing = ("HELLO", "INFO", "TIME", "PUBLISH", "SUBSCRIBE", "UNLINK", "CONFIG", "CLIENT")
    server = start(*map(TAKEN_AWAY.format, missing), program=program)
    one = way(server.url)
    for value in range(1, 8):
        one.carries(value)
    keys = [key.decode() for key in server.admin.keys("*")]
    assert len({one.fetcher.keys.version_of(key) for key in keys} - {None}) == 4, "the others were deleted"
    for name in ("INFO", "TIME", "PUBLISH", "SUBSCRIBE"):
        assert f"Redis does not do {name}, and we do without: ResponseError: unknown command" in caplog.text
    assert one.publisher.failures == 0
    assert one.versions.status.state is SyncState.CURRENT


@pytest.mark.parametrize("name", ["EVAL", "GETRANGE"])
def test_a_command_that_is_needed_and_not_there_is_named(start, way, name):
    one = way(start(TAKEN_AWAY.format(name)).url)
    one.publish(1)
    if name == "EVAL":
        eventually(lambda: "unknown command" in one.publisher.last_error)
        assert "EVAL" in one.publisher.last_error.upper()
        assert "\n" not in one.publisher.last_error
    eventually(lambda: name == "EVAL" or one.versions.status.state is SyncState.DISCONNECTED)
    if name == "GETRANGE":
        assert "GETRANGE" in one.versions.status.last_error.upper()
        assert one.metrics.weights.connected._value.get() == 0


# A proxy that knows few commands, and hangs up on the others


class HangingUp:
    """A proxy in this process that closes the connection on a command that it does not know."""

    def __init__(self, target) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source, sink, commands) -> None:
        unknown = re.compile(rb"\*\d+\r\n\$\d+\r\n(HELLO|CLIENT|INFO|TIME|PUBLISH|SUBSCRIBE|SELECT)\r\n", re.IGNORECASE)
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if commands and unknown.match(data):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def test_a_proxy_that_hangs_up_on_what_it_does_not_know(start, way, caplog):
    """As twemproxy does."""
    proxy = HangingUp(start().port)
    try:
        one = way(proxy.url)
        for value in range(1, 4):
            one.carries(value)
        assert one.publisher.failures == 0
        for name in ("INFO", "TIME", "PUBLISH", "SUBSCRIBE"):
            assert f"Redis does not do {name}, and we do without: ConnectionError" in caplog.text
        assert one.versions.status.state is SyncState.CURRENT
    finally:
        proxy.close()


def test_a_server_that_is_gone_is_not_taken_for_a_proxy(start, caplog):
    server = start()
    store = open_store(server.url)
    assert store.clock("key") is not None
    server.program.kill()
    with pytest.raises(StoreUnavailable):
        store.clock("key")
    assert "we do without" not in caplog.text


# Users with the rights that the page lists, and without one of them


def rights(user, run) -> list[str]:
    """The rules of a user on the page, for a run."""
    [found] = re.findall(rf"^ACL SETUSER {user} (.*)$", PAGE.read_text(), re.MULTILINE)
    return found.replace("RUN", run).replace(">PASSWORD", ">secret").split()


def commands(user) -> list[str]:
    return [rule for rule in rights(user, "run") if rule.startswith("+")]


@pytest.fixture(params=SERVERS)
def guarded(request, start):
    """A server, and guarded(publisher=…, sidecar=…): URLs of users with the page's rights but for those."""
    server = start(program=request.param)

    def users(run, publisher="", sidecar="") -> tuple[str, str]:
        urls = []
        for user, without in (("publisher", publisher), ("sidecar", sidecar)):
            rules = [rule for rule in rights(user, run) if rule != without]
            server.admin.execute_command("ACL", "SETUSER", user, "reset", *rules)
            urls.append(f"redis://{user}:secret@127.0.0.1:{server.port}")
        return urls[0], urls[1]

    server.users = users
    return server


def test_the_rights_on_the_page_are_enough(guarded, way, run_name, caplog):
    """For announcements, the store's clock, the heartbeat, what is seen of eviction, reports and what is swept."""
    caplog.set_level(logging.DEBUG)
    one = way(*guarded.users(run_name), ttl=1.0)
    for value in range(1, 8):
        one.carries(value)
    eventually(lambda: one.publisher._listeners.learners)
    keys = [key.decode() for key in guarded.admin.keys("*")]
    assert len({one.fetcher.keys.version_of(key) for key in keys} - {None}) == 4
    assert guarded.admin.exists(one.fetcher.keys.clock(7, one.publisher._shipper.token))
    guarded.admin.config_set("maxmemory", "100mb")
    guarded.admin.config_set("maxmemory-policy", "allkeys-lru")
    eventually(lambda: one.publisher.unsafe)
    time.sleep(1.2)  # longer than keys live without the heartbeat
    assert guarded.admin.exists(one.fetcher.keys.pointer)
    assert one.publisher.failures == 0
    assert "we do without" not in caplog.text
    assert "NoPermission" not in caplog.text
    with WeightPublisher(guarded.users(run_name)[0], run_name) as second:
        guarded.admin.config_set("maxmemory-policy", "noeviction")
        second.publish(8, {"w": np.full(1000, 8, np.float32)})
        assert second.flush(), second.last_error
        # Its heartbeat may have noticed the other one already, and then it takes no weights.
        assert one.publisher.publish(9, {"w": np.full(1000, 9, np.float32)}) or one.publisher.fenced
        eventually(lambda: one.publisher.fenced)


def test_a_cluster_needs_two_rights_more(start, way, run_name, caplog):
    more = ["+cluster|slots", "+command"]
    assert f"`{' '.join(more)}`" in PAGE.read_text()
    server = start("cluster-enabled yes")
    server.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    for user in ("publisher", "sidecar"):
        server.admin.execute_command("ACL", "SETUSER", user, "reset", *rights(user, run_name), *more)
    eventually(lambda: b"cluster_state:ok" in server.admin.execute_command("CLUSTER", "INFO"))
    urls = [f"redis+cluster://{user}:secret@127.0.0.1:{server.port}" for user in ("publisher", "sidecar")]
    one = way(*urls)
    for value in range(1, 4):
        one.carries(value)
    assert one.publisher.failures == 0
    assert "NoPermission" not in caplog.text


@pytest.mark.parametrize(
    ("user", "right"), [(user, right) for user in ("publisher", "sidecar") for right in commands(user)]
)
def test_a_right_that_is_missing_is_named(start, way, run_name, caplog, user, right):
    caplog.set_level(logging.INFO)
    server = start()
    for name in ("publisher", "sidecar"):
        rules = [rule for rule in rights(name, run_name) if name != user or rule != right]
        server.admin.execute_command("ACL", "SETUSER", name, "reset", *rules)
    urls = [f"redis://{name}:secret@127.0.0.1:{server.port}" for name in ("publisher", "sidecar")]
    one = way(*urls, ttl=1.0)
    told = re.compile(rf"NoPermissionError.*'{right[1:]}'|ACL failure.*'{right[1:]}'", re.IGNORECASE)

    def said() -> str:
        return "\n".join([one.publisher.last_error, one.versions.status.last_error, caplog.text])

    value = 0
    deadline = time.monotonic() + 20
    while not told.search(said()):
        assert time.monotonic() < deadline, said()
        value += 1
        one.publish(value)
        one.publisher.flush(0.5)
    assert "docs/weight-sync.md has the rights that are needed" in said()
    if user == "sidecar" and right in ("+get", "+getrange"):
        eventually(lambda: one.versions.status.state is SyncState.DISCONNECTED)
