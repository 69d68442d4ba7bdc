"""One publisher's claim on a run, interrupted at a chosen moment."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis
from selector_client.publishing import shipping
from selector_client.publishing.shipping import Fenced, Shipper
from selector_client.publishing.snapshot import Snapshot
from selector_proto.weights.layout import Keys
from selector_proto.weights.store import StoreRefused, StoreUnavailable
from selector_proto.weights.transports import open_store
from support.processes import spawn
from support.proxy import Proxy
from support.redis_servers import valkey_server


@pytest.fixture
def snapshot():
    snapshot = Snapshot(step=1)
    with ThreadPoolExecutor(1) as threads:
        snapshot.fill({"w": np.zeros(3_000_000, np.float32)}.items(), threads)  # 12 chunks
    return snapshot


@pytest.mark.parametrize("kind", ["redis", "folder"])
def test_a_publisher_that_is_fenced_just_before_the_pointer_moves_none(
    kind, redis_url, run_name, tmp_path, snapshot, monkeypatch
):
    url, keys = redis_url if kind == "redis" else tmp_path.as_uri(), Keys(run_name)
    store, other = open_store(url, write=True), open_store(url, write=True)
    shipper, put = Shipper(store, keys, "fp32", keep=2, ttl=60), store.put_all
    assert shipper.ship(snapshot) == 1

    def fence_after_the_chunks(items, ttl):
        put(items, ttl)
        assert other.next_version(keys, f"{1 << 50} somebody", 0, 60) == 3

    monkeypatch.setattr(store, "put_all", fence_after_the_chunks)
    with pytest.raises(Fenced):
        shipper.ship(snapshot)
    assert store.get(keys.pointer) == b"1"
    assert store.get(keys.manifest(2)) is None
    assert store.get(keys.chunk(2, shipper.token, 0)) is None
    shipper.close()


def test_nothing_is_cast_any_more_when_a_failure_is_reported(redis_url, run_name, snapshot, monkeypatch):
    """The snapshot's buffers are filled anew after it, and so are the chunks' rooms."""
    store, make, under_way = open_store(redis_url), shipping._make, []

    def slowly(*arguments):
        under_way.append(1)
        time.sleep(0.1)
        made = make(*arguments)
        under_way.pop()
        return made

    def fail(items, ttl):
        next(iter(items))
        raise StoreUnavailable("cut off")

    monkeypatch.setattr(shipping, "_make", slowly)
    monkeypatch.setattr(store, "put_all", fail)
    shipper = Shipper(store, Keys(run_name), "fp32", keep=2, ttl=60)
    with pytest.raises(StoreUnavailable):
        shipper.ship(snapshot)
    assert not under_way
    shipper.close()


# What is not needed any more


def numbers_of(keys, names) -> set[int]:
    """Versions that the keys belong to."""
    return {version for name in names if (version := keys.version_of(name)) is not None}


def in_redis(client, run) -> set[str]:
    return {key.decode() for key in client.scan_iter(f"*{{{run}}}*")}


def test_what_a_failure_left_goes_with_the_next_success(redis_url, run_name, snapshot):
    """Cut off in the middle of a version, so that it cannot be taken back either."""
    proxy, client, keys = Proxy(urlsplit(redis_url).port), redis.Redis.from_url(redis_url), Keys(run_name)
    shipper = Shipper(open_store(f"redis://127.0.0.1:{proxy.port}"), keys, "fp32", keep=2, ttl=60)
    assert shipper.ship(snapshot) == 1
    proxy.cut(5_000_000)
    with pytest.raises(StoreUnavailable):
        shipper.ship(snapshot)
    assert numbers_of(keys, in_redis(client, run_name)) == {1, 2}
    proxy.mend()
    assert shipper.ship(snapshot) == 3
    assert numbers_of(keys, in_redis(client, run_name)) == {1, 3}
    proxy.cut(5_000_000)
    with pytest.raises(StoreUnavailable):
        shipper.ship(snapshot)
    proxy.mend()
    assert shipper.refresh()
    assert numbers_of(keys, in_redis(client, run_name)) == {1, 3}, "or with the next heartbeat"
    shipper.close()
    proxy.close()


def test_sweeping_that_fails_fails_no_publication(redis_url, run_name, snapshot, monkeypatch):
    store, client, keys = open_store(redis_url), redis.Redis.from_url(redis_url), Keys(run_name)
    monkeypatch.setattr(shipping, "HOLD_SECONDS", 0)
    shipper = Shipper(store, keys, "fp32", keep=2, ttl=60)

    def fail(*names):
        raise StoreUnavailable("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", fail)
        assert [shipper.ship(snapshot) for _ in range(4)] == [1, 2, 3, 4]
    assert numbers_of(keys, in_redis(client, run_name)) == {1, 2, 3, 4}
    assert shipper.ship(snapshot) == 5
    assert numbers_of(keys, in_redis(client, run_name)) == {4, 5}
    shipper.close()


def test_versions_that_were_the_newest_a_moment_ago_stay_but_only_a_few(redis_url, run_name, snapshot, monkeypatch):
    client, keys = redis.Redis.from_url(redis_url), Keys(run_name)
    shipper = Shipper(open_store(redis_url), keys, "fp32", keep=2, ttl=60)
    for _ in range(7):
        shipper.ship(snapshot)
    assert numbers_of(keys, in_redis(client, run_name)) == {4, 5, 6, 7}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert shipper.refresh()
    assert numbers_of(keys, in_redis(client, run_name)) == {6, 7}
    shipper.close()


def test_where_there_is_no_room_only_those_stay_that_must(run_name, snapshot):
    """12 MB a version: four of them fit, and a fifth on its way does not."""
    server = valkey_server(config={"maxmemory": "56mb", "maxmemory-policy": "noeviction"})
    try:
        shipper = Shipper(open_store(server.connection_url), Keys(run_name), "fp32", keep=2, ttl=60)
        for _ in range(4):
            shipper.ship(snapshot)
        with pytest.raises(StoreRefused, match="maxmemory"):
            shipper.ship(snapshot)
        for _ in range(6):
            shipper.ship(snapshot)
        assert len(numbers_of(Keys(run_name), in_redis(redis.Redis(port=server.port), run_name))) == 2
        shipper.close()
    finally:
        server.stop()


_KILLED = """
import sys
import numpy as np
from selector_client import WeightPublisher
publisher = WeightPublisher(sys.argv[1], "run", dtype="fp32", keep=9)
for step in range(1, 6):
    publisher.publish(step, {"w": np.full(2_000_000, step, np.float32)})
    assert publisher.flush()
publisher._shipper._store.move_pointer = lambda *_: (print("ready", flush=True), sys.stdin.read())
publisher.publish(6, {"w": np.full(2_000_000, 6, np.float32)})
publisher.flush(60)
"""


def test_versions_of_a_publisher_that_was_killed_leave_the_folder(tmp_path, snapshot):
    keys = Keys("run")
    killed = spawn("-c", _KILLED, tmp_path.as_uri(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    killed.stdout.readline()
    killed.kill()
    killed.wait(10)
    store = open_store(tmp_path.as_uri(), write=True)
    assert set(store.left_behind(keys)) == {1, 2, 3, 4, 5, 6}
    shipper = Shipper(store, keys, "fp32", keep=2, ttl=60)
    assert shipper.ship(snapshot) == 7
    assert set(store.left_behind(keys)) == {5, 7}, "readers may be on their way to what was the newest"
    assert shipper.ship(snapshot) == 8
    assert set(store.left_behind(keys)) == {7, 8}
    shipper.close()


def test_a_folder_whose_counter_is_older_than_its_versions(tmp_path, snapshot):
    """A backup was put back over it."""
    keys, store = Keys("run"), open_store(tmp_path.as_uri(), write=True)
    for expected in ([1, 2, 3, 4], [5, 6]):
        shipper = Shipper(store, keys, "fp32", keep=2, ttl=60)
        assert [shipper.ship(snapshot) for _ in expected] == expected
        shipper.close()
        store.put_all([(key, memoryview(b"1")) for key in (keys.counter, keys.pointer)], 60)
    assert store.get(keys.manifest(6)) is not None
