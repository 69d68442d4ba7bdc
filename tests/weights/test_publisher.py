"""The publisher by itself: what it keeps, skips, replaces and refuses."""

import time

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher, shipping
from selector_proto.weights import CHUNK_BYTES, Keys
from support.processes import eventually, free_port
from support.runs import chunk_key, fetch

from selector_server.weights.source import Incomplete


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
    assert time.monotonic() - started < 2, "the trainer does not wait for Redis"
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


def test_a_dtype_that_cannot_travel(redis_url, run_name):
    with WeightPublisher(redis_url, run_name) as publisher:
        with pytest.raises(TypeError, match="w has dtype complex64"):
            publisher.publish(0, {"w": np.zeros(3, np.complex64)})
        assert publisher.publish(1, {"w": np.zeros(3, np.float32)})
        assert publisher.flush()
