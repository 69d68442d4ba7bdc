"""The publisher's side of docs/weight-sync.md, its faults caused for real."""

import time

import numpy as np
import pytest
import redis
import torch
from selector_client import Canary, PublishError, WeightPublisher
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.layout import Keys, digest
from support.model import TwoTower, as_published, embed, plan, samples
from support.processes import eventually, free_port
from support.redis_servers import valkey_server
from support.runs import chunk_key
from support.wire import raw

from selector_server.weights.fetcher import Fetcher, Incomplete

PIXELS, IDS = samples(30)
POLL = {"weights_poll_seconds": 0.05, "max_weights_bytes": 64 << 20}
BIG = {"w": np.random.default_rng(0).standard_normal((3000, 1000)).astype(np.float32)}  # 12 chunks in fp32


def fetched(url, run, version=None):
    fetcher = Fetcher(url, run, 1 << 30)
    try:
        version = fetcher.newest() if version is None else version
        return fetcher.fetch(version, fetcher.manifest(version))
    finally:
        fetcher.close()


def keys_of(client, run) -> set[str]:
    return {key.decode() for key in client.scan_iter(f"*{{{run}}}*")}


@pytest.fixture
def valkey():
    """Starts servers with settings of their own."""
    servers = []

    def start(**config):
        servers.append(valkey_server(config=config))
        return servers[-1].connection_url, servers[-1]

    yield start
    for server in servers:
        server.stop()


# Time to live


def test_keys_live_while_the_publisher_does_and_no_longer(redis_url, run_name):
    client = redis.Redis.from_url(redis_url)
    publisher = WeightPublisher(redis_url, run_name, ttl=2)
    publisher.publish(1, {"w": np.float32(1)})
    assert publisher.flush()
    time.sleep(3.5)
    assert fetched(redis_url, run_name).manifest.trainer_step == 1, "a trainer that pauses loses nothing"
    assert all(0 < client.ttl(key) <= 2 for key in keys_of(client, run_name))
    publisher.close()
    eventually(lambda: not keys_of(client, run_name), 5)


def test_what_redis_lost_is_published_again(redis_url, run_name):
    client = redis.Redis.from_url(redis_url)
    with WeightPublisher(redis_url, run_name, ttl=2) as publisher:
        publisher.publish(1, BIG)
        assert publisher.flush()
        client.delete(*keys_of(client, run_name))
        eventually(lambda: publisher.published == 2, 10)
        again = fetched(redis_url, run_name)
        assert (again.manifest.trainer_step, again.manifest.version) == (1, 2)
        time.sleep(1.5)
        assert publisher.published == 2, "what is lost is lost once"


def test_versions_that_are_kept_live_also_while_newer_ones_come(redis_url, run_name):
    with WeightPublisher(redis_url, run_name, ttl=1, keep=100) as publisher:
        for step in range(1, 20):
            publisher.publish(step, {"w": np.float32(step)})
            assert publisher.flush()
            time.sleep(0.1)
        assert fetched(redis_url, run_name, version=1).manifest.trainer_step == 1


def test_the_last_version_lives_while_no_newer_one_can_be_published(valkey, run_name):
    url, _ = valkey(**{"maxmemory": "24mb", "maxmemory-policy": "noeviction"})
    with WeightPublisher(url, run_name, dtype="fp32", ttl=2) as publisher:
        publisher.publish(1, {"w": np.zeros(1_000_000, np.float32)})
        assert publisher.flush()
        publisher.publish(2, {"w": np.zeros(8_000_000, np.float32)})
        time.sleep(6)
        assert publisher.failures
        assert fetched(url, run_name).manifest.trainer_step == 1
        publisher.publish(3, {"w": np.float32(3)})


# Redis that is unfit or full


def test_a_redis_that_evicts_is_refused(valkey, run_name, caplog):
    url, _ = valkey(**{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    with WeightPublisher(url, run_name) as publisher:
        publisher.publish(1, {"w": np.float32(1)})
        eventually(lambda: publisher.failures)
        assert "maxmemory-policy is allkeys-lru; must be noeviction" in publisher.last_error
        redis.Redis.from_url(url).config_set("maxmemory-policy", "noeviction")
        assert publisher.flush(20), "it is fit now"


def test_a_full_redis_keeps_the_old_version_whole_and_gets_its_room_back(valkey, run_name):
    url, _ = valkey(**{"maxmemory": "24mb", "maxmemory-policy": "noeviction"})
    client = redis.Redis.from_url(url)
    with WeightPublisher(url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, {"w": np.zeros(1_000_000, np.float32)})
        assert publisher.flush()
        before = keys_of(client, run_name)
        publisher.publish(2, {"w": np.zeros(8_000_000, np.float32)})
        eventually(lambda: publisher.failures)
        assert "OutOfMemory" in publisher.last_error or "OOM" in publisher.last_error
        assert fetched(url, run_name).manifest.trainer_step == 1
        publisher.publish(3, {"w": np.zeros(10, np.float32)})
        assert publisher.flush(20)
        assert fetched(url, run_name).manifest.trainer_step == 3
        assert len(keys_of(client, run_name)) < len(before) + 5, "nothing of the failed version is left"


# What is fetched


def test_a_chunk_that_changed_is_named(redis_url, run_name):
    client = redis.Redis.from_url(redis_url)
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, BIG)
        assert publisher.flush()
        key = chunk_key(client, Keys(run_name), 1, 7)
        chunk = bytearray(client.get(key))
        chunk[1000] ^= 1
        client.set(key, bytes(chunk))
        with pytest.raises(Incomplete, match="BLAKE3 of chunk 7 does not match"):
            fetched(redis_url, run_name)


def test_what_is_fetched_is_what_was_published(redis_url, run_name):
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, BIG)
        assert publisher.flush()
    whole = fetched(redis_url, run_name)
    assert whole.tensors["w"].data == BIG["w"].tobytes()
    assert whole.manifest.payload_blake3 == digest(whole.manifest.chunk_blake3)


def test_snapshots_reuse_their_buffers_and_stay_apart(redis_url, run_name):
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        for step in range(1, 30):
            publisher.publish(step, {"w": np.full(100_000, step, np.float32), "t": torch.full((50, 50), float(step))})
            if step % 3 == 0:
                assert publisher.flush()
                whole = fetched(redis_url, run_name)
                for name in ("w", "t"):
                    assert (np.frombuffer(whole.tensors[name].data, np.float32) == step).all()


# Canary


@pytest.fixture
def served(sidecar, bundles, redis_url, run_name):
    return sidecar(bundles.flags | POLL | {"redis": redis_url, "run": run_name})


def canary_of(model, count=4) -> Canary:
    embedded = embed(model, PIXELS[:count], IDS[:count])
    return Canary(PIXELS[:count], IDS[:count], embedded.image, embedded.text)


def test_weights_that_encode_the_canary_as_the_trainer_did_are_served(served, bundles, redis_url, run_name):
    model = TwoTower(21)
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, model, canary_of(model))
        assert publisher.flush()
        eventually(lambda: served.status().serving.version == 1)
    picks = bundles.picks(PIXELS, IDS, plan(6, 6, seed=3), learner=as_published(model))
    assert list(served.select(raw(PIXELS, IDS, seed=3)).indices) == picks


def test_weights_that_encode_the_canary_otherwise_are_refused(served, redis_url, run_name):
    model, other = TwoTower(21), TwoTower(22)
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, model, canary_of(other))
        assert publisher.flush()
        status = eventually(lambda: (s := served.status()).rejections == 1 and s)
        assert "canary: cosine to the trainer's image embedding" in status.last_error
        assert (status.state, status.serving.version) == (pb.SYNC_STATE_REJECTED, 0)
        publisher.publish(2, model, Canary(PIXELS[:2, :4], IDS[:2], np.ones((2, 16)), np.ones((2, 16))))
        assert publisher.flush()
        status = eventually(lambda: (s := served.status()).rejections == 2 and s)
        assert "canary pixels is U8 [2, 4, 8, 3]; must be U8 [2, 8, 8, 3]" in status.last_error
        with pytest.raises(ValueError, match="canary has"):
            publisher.publish(3, model, Canary(PIXELS[:20], IDS[:20], np.ones((20, 16)), np.ones((20, 16))))


def test_a_canary_travels_in_full_precision(redis_url, run_name):
    embeddings = np.random.default_rng(0).standard_normal((16, 64), np.float32)  # 1024 values, as a large weight has
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, {"w": embeddings}, Canary(PIXELS[:16], IDS[:16], embeddings, embeddings))
        assert publisher.flush()
    tensors = fetched(redis_url, run_name).tensors
    assert (tensors["w"].dtype, tensors["__canary__/image"].dtype) == ("BF16", "F32")
    np.testing.assert_array_equal(np.frombuffer(tensors["__canary__/text"].data, np.float32), embeddings.reshape(-1))


def test_ranks_that_do_not_publish(redis_url, run_name):
    with (
        WeightPublisher(redis_url, run_name, rank=1) as other,
        WeightPublisher(redis_url, run_name, rank=0) as publisher,
    ):
        assert not other.publish(1, {"w": np.float32(1)})
        assert publisher.publish(1, {"w": np.float32(1)})
        assert publisher.flush()
    assert other.published == 0
    assert fetched(redis_url, run_name).manifest.publisher


def test_a_trainer_that_asks_for_it_is_told(run_name):
    publisher = WeightPublisher(f"redis://127.0.0.1:{free_port()}", run_name, on_error="raise")
    assert publisher.publish(1, {"w": np.float32(1)})
    eventually(lambda: publisher.failures)
    with pytest.raises(PublishError, match="refused"):
        publisher.publish(2, {"w": np.float32(2)})
    publisher.close(timeout=0.1)
    with pytest.raises(ValueError, match="on_error is 'shout'"):
        WeightPublisher("redis://localhost", run_name, on_error="shout")
