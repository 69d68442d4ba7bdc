"""Versions that must not be served: the good one before them stays, the reason is told, the next good one is taken."""

import json
import time

import grpc
import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.layout import FORMAT
from support.model import TwoTower, as_published
from support.processes import eventually
from support.runs import BY_HAND, IDS, PIXELS, views
from support.wire import raw

# A header of more tensors than any model has; one of 10^9 would be longer than headers may be.
ENDLESS = "{{{}}}".format(",".join(f'"{i}":0' for i in range(100_001)))
ENDLESS = len(ENDLESS).to_bytes(8, "little") + ENDLESS.encode()


def chunk_with_a_flipped_bit(run, model):
    version = run.put(views(model))
    chunk = bytearray(run.redis.get(run.keys.chunk(version, BY_HAND, 0)))
    chunk[-3] ^= 8
    run.redis.set(run.keys.chunk(version, BY_HAND, 0), bytes(chunk))
    run.redis.set(run.keys.pointer, version)


def before_pointer(run, model, change):
    """A version that is spoilt before the pointer shows it."""
    pointer = run.redis.get(run.keys.pointer)
    version = run.put(views(model))
    run.redis.set(run.keys.pointer, pointer)
    change(version)
    run.redis.set(run.keys.pointer, version)


def missing_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.delete(run.keys.chunk(version, BY_HAND, 0)))


def short_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.set(run.keys.chunk(version, BY_HAND, 0), b"short"))


def long_chunk(run, model):
    before_pointer(run, model, lambda version: run.redis.append(run.keys.chunk(version, BY_HAND, 0), b"more"))


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
    "another place for chunks": (manifest_of(publisher="a:0"), "publisher is 'a:0'; must be a name"),
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


def test_an_older_version_is_refused_and_counted(run):
    """By a restored backup: a number that is not higher, of a publisher that had a successor."""
    followed = run.put(views(TwoTower(58)))
    eventually(lambda: run.server.status().serving.version == followed)
    version, rejections = run.publish(TwoTower(58)), run.server.status().rejections
    refused = run.server.metrics()("selector_weights_sync_total", result="refused") or 0
    run.redis.set(run.keys.counter, 0)
    older = run.put(views(TwoTower(59)))
    status = eventually(lambda: (s := run.server.status()).rejections == rejections + 1 and s)
    assert f"must be after version {version}, which is served" in status.last_error
    assert status.serving.version == version > older
    assert run.server.metrics()("selector_weights_sync_total", result="refused") == refused + 1
    assert run.publish(TwoTower(60)) > version


def test_a_lower_step_of_a_higher_version_is_served(run):
    """The trainer went back to a checkpoint."""
    run.publish(TwoTower(61), step=100)
    model = TwoTower(62)
    run.publish(model, step=40)
    assert run.server.status().serving.trainer_step == 40
    assert list(run.select().indices) == run.picks_of(as_published(model))


def test_a_key_of_another_type_is_reported_and_survived(run):
    version = run.publish(TwoTower(56))
    run.redis.delete(run.keys.pointer)
    run.redis.lpush(run.keys.pointer, "1")
    status = eventually(lambda: (s := run.server.status()).last_error and s)
    assert "WRONGTYPE" in status.last_error
    assert status.serving.version == version
    run.redis.delete(run.keys.pointer)
    assert run.publish(TwoTower(57)) == version + 1
