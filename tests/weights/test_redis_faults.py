"""What a server of Redis says when it does not serve: each in one line, until it does."""

import os
import shutil

import numpy as np
import pytest
from selector_client import WeightPublisher
from support.processes import eventually, free_port
from support.redis_servers import Program
from support.redis_ways import SERVERS

from selector_server.weights import subscriber
from selector_server.weights.versions import SyncState


def locked_out(server) -> None:
    server.admin.config_set("requirepass", "secret")
    server.admin.execute_command("AUTH", "secret")
    server.admin.client_kill_filter(_type="normal", skipme=True)
    server.admin.client_kill_filter(_type="pubsub")


def let_in(server) -> None:
    server.admin.config_set("requirepass", "")


def crowded(server) -> None:
    """The bound comes before the others lose their connections, or one of them is back before it."""
    server.admin.config_set("maxclients", 1)
    server.admin.client_kill_filter(_type="normal", skipme=True)
    server.admin.client_kill_filter(_type="pubsub")


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
