"""The publisher by itself: what it keeps, skips, replaces and refuses."""

import io
import time
import weakref

import numpy as np
import pytest
import redis
import torch
from selector_client import Canary, PublishError, WeightPublisher
from selector_client.publishing import shipping
from selector_proto.weights.layout import CHUNK_BYTES, Keys
from support.processes import eventually, free_port
from support.runs import chunk_key, fetch

from selector_server.weights.fetcher import Incomplete


def test_only_the_last_versions_stay_in_redis(redis_url, run_name, monkeypatch):
    monkeypatch.setattr(shipping, "HOLD_SECONDS", 0)
    client, keys = redis.Redis.from_url(redis_url), Keys(run_name)
    rng = np.random.default_rng(0)
    with WeightPublisher(redis_url, run_name, keep=3, dtype="fp32") as publisher:
        for step in range(6):
            publisher.publish(step, {"w": rng.standard_normal((700, 1000)).astype(np.float32)})
            assert publisher.flush()
    wanted = {keys.counter, keys.pointer, keys.owner}
    for version in (4, 5, 6):
        wanted |= {keys.manifest(version), *(chunk_key(client, keys, version, i) for i in range(3))}
        wanted |= {keys.clock(version, publisher._shipper.token)}
    assert {key.decode() for key in client.scan_iter(f"*{{{run_name}}}*")} == wanted
    sizes = [client.strlen(chunk_key(client, keys, 6, i)) for i in range(3)]
    assert sizes[:2] == [CHUNK_BYTES, CHUNK_BYTES]
    assert 2_800_000 < sum(sizes) < 2_800_200, "the tensor and a small header"
    assert fetch(redis_url, run_name, 6).tensors["w"].shape == (700, 1000)
    with pytest.raises(Incomplete):
        fetch(redis_url, run_name, 3)


def test_every_nth_call_is_published(redis_url, run_name):
    with WeightPublisher(redis_url, run_name, every=3) as publisher:
        taken = [publisher.publish(step, {"w": np.float32(step)}) for step in range(7)]
        assert publisher.flush()
    assert taken == [True, False, False, True, False, False, True]
    assert publisher.published + publisher.superseded == 3
    assert fetch(redis_url, run_name, publisher.last_version).manifest.trainer_step == 6


def test_what_cannot_keep_up_is_superseded_by_the_newest(run_name):
    """Nothing listens: the first snapshot is tried again until a newer one takes its place."""
    publisher = WeightPublisher(f"redis://127.0.0.1:{free_port()}", run_name)
    started = time.monotonic()
    for step in range(50):
        assert publisher.publish(step, {"w": np.float32(step)})
    assert time.monotonic() - started < 10, "the trainer does not wait for Redis"
    assert publisher.superseded >= 48
    assert publisher.published == 0
    eventually(lambda: publisher.failures >= 1)
    assert not publisher.close(timeout=0.5), "close says that something was not published"
    with pytest.raises(ValueError, match="closed"):
        publisher.publish(51, {"w": np.float32(0)})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"every": 0}, "every is 0"),
        ({"keep": 1}, "keep is 1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"run": "two words"}, "run is 'two words'"),
        ({"url": "http://somewhere"}, "scheme"),
    ],
)
def test_mistakes_of_the_caller(arguments, named):
    with pytest.raises(ValueError, match=named):
        WeightPublisher(**({"url": "redis://localhost", "run": "r"} | arguments))


# Nothing of a model ends the training


def test_what_cannot_travel_is_left_out_and_told_once(redis_url, run_name, caplog):
    state = {"w": torch.ones(3), "scales": torch.ones(3, dtype=torch.int8), "c": np.zeros(3, np.complex64)}
    state |= {"m._extra_state": io.BytesIO(b"?"), "n._extra_state": None, "list": [[1], [1, 2]]}
    state |= {"sparse": torch.ones(2, 2).to_sparse()}
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        for step in range(2):
            assert publisher.publish(step, state)
            assert publisher.flush()
        assert publisher.failures == 0
    assert set(fetch(redis_url, run_name, 2).tensors) == {"w"}
    [told] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told.startswith("6 tensors")
    for name in ("scales (int8)", "c (complex64)", "m._extra_state (object)", "list (list)", "sparse (sparse_coo)"):
        assert name in told


def test_two_tensors_of_one_name_are_counted(redis_url, run_name):
    with WeightPublisher(redis_url, run_name) as publisher:
        assert not publisher.publish(1, {"w": np.float32(1), "module.w": np.float32(2)})
        assert (publisher.failures, publisher.published) == (1, 0)
        assert "module.w is a second tensor named w" in publisher.last_error


# More than there are addresses.
ENDLESS = {"w": np.broadcast_to(np.float32(0), (1 << 58,))}


def test_a_copy_for_which_there_is_no_memory_is_counted(redis_url, run_name):
    with WeightPublisher(redis_url, run_name) as publisher:
        assert publisher.publish(1, {"w": np.float32(1)})
        assert publisher.flush()
        assert publisher.publish(2, {"w": np.float32(2)})
        assert publisher.flush()
        buffers = len(publisher._idle)
        assert not publisher.publish(3, ENDLESS)
        assert publisher.failures == 1
        assert "Unable to allocate" in publisher.last_error
        assert len(publisher._idle) == buffers, "the buffers are used again"
        assert publisher.publish(4, {"w": np.float32(4)})
        assert publisher.flush()
        assert (publisher.published, publisher.last_error) == (3, "")
    with WeightPublisher(redis_url, run_name, on_error="raise") as publisher:
        with pytest.raises(PublishError, match="Unable to allocate"):
            publisher.publish(5, ENDLESS)
        assert publisher.publish(6, {"w": np.float32(6)}), "it was told"


# Sharded tensors


class Sharded:
    """Gathers a tensor of 32 MB, as a DTensor does, and knows how many of them exist."""

    gathered, alive, most = 0, 0, 0

    def full_tensor(self):
        Sharded.gathered += 1
        Sharded.alive += 1
        Sharded.most = max(Sharded.most, Sharded.alive)
        tensor = torch.ones(8 << 20)
        weakref.finalize(tensor.untyped_storage(), self.gone)
        return tensor

    @staticmethod
    def gone():
        Sharded.alive -= 1


@pytest.fixture
def sharded():
    Sharded.gathered = Sharded.alive = Sharded.most = 0
    return {f"w{i}": Sharded() for i in range(12)}


def test_sharded_tensors_are_not_gathered_all_at_once(redis_url, run_name, sharded):
    with WeightPublisher(redis_url, run_name, rank=0) as publisher:
        assert publisher.publish(1, sharded)
        assert (Sharded.gathered, Sharded.alive) == (12, 0)
        assert Sharded.most <= 2, "64 MB of them"
        assert publisher.flush()
    assert len(fetch(redis_url, run_name, 1).tensors) == 12


def test_other_ranks_hold_no_tensor_that_they_gathered(redis_url, run_name, sharded):
    with WeightPublisher(redis_url, run_name, rank=1) as publisher:
        assert not publisher.publish(1, sharded)
    assert (Sharded.gathered, Sharded.most) == (12, 1)


@pytest.mark.parametrize("why", ["no memory", "fenced", "closed", "canary"])
def test_a_rank_that_publishes_nothing_takes_part_in_gathering_all(redis_url, run_name, sharded, why):
    """The others would wait for it."""
    publisher = WeightPublisher(redis_url, run_name, rank=0)
    if why == "fenced":
        assert publisher.publish(1, {"w": np.float32(1)})
        assert publisher.flush()
        redis.Redis.from_url(redis_url).set(Keys(run_name).owner, f"{1 << 50} somebody")
        assert publisher.publish(2, {"w": np.float32(2)})
        eventually(lambda: publisher.fenced)
    if why == "canary":
        with pytest.raises(ValueError, match="canary has"):
            publisher.publish(3, sharded, Canary([0], [0, 1], [0], [0]))
    elif why == "closed":
        publisher.close()
        with pytest.raises(ValueError, match="closed"):
            publisher.publish(3, sharded)
    else:
        assert not publisher.publish(3, sharded | ENDLESS if why == "fenced" else ENDLESS | sharded)
    assert Sharded.gathered == 12
    publisher.close(timeout=1)


def test_a_tensor_that_cannot_be_gathered_is_the_trainers_business(redis_url, run_name):
    class Broken:
        def full_tensor(self):
            raise RuntimeError("a rank is gone")

    for rank in (0, 1):
        with (
            WeightPublisher(redis_url, run_name, rank=rank) as publisher,
            pytest.raises(PublishError, match="w: RuntimeError: a rank is gone"),
        ):
            publisher.publish(1, {"w": Broken()})
