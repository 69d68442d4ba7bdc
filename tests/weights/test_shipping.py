"""One publisher's claim on a run, interrupted at a chosen moment."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from selector_client import shipping
from selector_client.shipping import Fenced, Shipper
from selector_client.snapshot import Snapshot
from selector_proto.stores import open_store
from selector_proto.weights import Keys


@pytest.fixture
def snapshot():
    snapshot = Snapshot(step=1)
    with ThreadPoolExecutor(1) as threads:
        snapshot.fill({"w": np.zeros(3_000_000, np.float32)}, threads)  # 12 chunks
    return snapshot


@pytest.mark.parametrize("kind", ["redis", "folder"])
def test_a_publisher_that_is_fenced_just_before_the_pointer_moves_none(
    kind, redis_url, run_name, tmp_path, snapshot, monkeypatch
):
    url, keys = redis_url if kind == "redis" else tmp_path.as_uri(), Keys(run_name)
    store, other = open_store(url, write=True), open_store(url, write=True)
    shipper, put = Shipper(store, keys, "fp32", keep=2, ttl=60), store.set_all
    assert shipper.ship(snapshot) == 1

    def fence_after_the_chunks(items, *, ex):
        put(items, ex=ex)
        assert other.next_version(keys, f"{1 << 50} somebody", 0, 60) == 3

    monkeypatch.setattr(store, "set_all", fence_after_the_chunks)
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

    def fail(items, *, ex):
        next(iter(items))
        raise redis.ConnectionError("cut off")

    monkeypatch.setattr(shipping, "_make", slowly)
    monkeypatch.setattr(store, "set_all", fail)
    shipper = Shipper(store, Keys(run_name), "fp32", keep=2, ttl=60)
    with pytest.raises(redis.ConnectionError):
        shipper.ship(snapshot)
    assert not under_way
    shipper.close()
