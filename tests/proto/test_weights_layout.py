"""The safetensors layout and the manifest: round trips, hostile bytes, and names of keys."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_proto import safetensors
from selector_proto.safetensors import LayoutError, TensorView
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights.layout import (
    FORMAT,
    Keys,
    ManifestError,
    chunk_count,
    decode_manifest,
    digest,
    encode_manifest,
)

KEYS = Keys("run")


def file_of(header: object, data: bytes = b"") -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(st.dictionaries(st.text(max_size=12).filter(lambda n: n != "__metadata__"), st.binary(max_size=40), max_size=8))
def test_files_come_back_as_they_went(tensors):
    views = {name: TensorView("U8", (len(data),), memoryview(data)) for name, data in tensors.items()}
    file = memoryview(b"".join(safetensors.encode(views)))
    back = safetensors.decode(file)
    assert {name: (view.dtype, view.shape, bytes(view.data)) for name, view in back.items()} == {
        name: ("U8", (len(data),), data) for name, data in tensors.items()
    }


def test_the_layout_is_the_published_one():
    """Byte for byte what the format's description says."""
    values = np.array([[1.0, 2.0]], np.float32)
    file = b"".join(safetensors.encode({"a": TensorView("F32", (1, 2), memoryview(values.tobytes()))}))
    length = int.from_bytes(file[:8], "little")
    assert json.loads(file[8 : 8 + length]) == {"a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    assert file[8 + length :] == values.tobytes()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (memoryview(b"123"), "has no header"),
        (memoryview((1 << 60).to_bytes(8, "little") + b"{}"), "header length"),
        (file_of(b"[1]"), "not a JSON object"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of({"a": {"dtype": "F32"}}), "malformed"),
        (file_of({"a": entry(dtype="F99")}, bytes(4)), "dtype 'F99'"),
        (file_of({"a": entry(shape=(-1,))}, bytes(4)), "shape"),
        (file_of({"a": entry(shape=(2**62, 4))}, bytes(4)), "shape"),
        (file_of({"a": entry(shape=(2,))}, bytes(4)), "need another number"),
        (file_of({"a": entry(offsets=(0, 8))}, bytes(4)), "lies at bytes 0 to 8 of 4"),
        (file_of({"a": entry(), "b": entry()}, bytes(8)), "starts at byte 0"),
        (file_of({"a": entry()}, bytes(8)), "end at byte 4 of 8"),
        (file_of({"a": entry(offsets=(4, 8))}, bytes(8)), "starts at byte 4"),
    ],
)
def test_malformed_files_are_refused_by_name(file, message):
    with pytest.raises(LayoutError, match=message):
        safetensors.decode(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {}, optional={"dtype": st.sampled_from(["F32", "U8", "I64", "X"]) | JSON, "shape": JSON, "data_offsets": JSON}
)


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=60) | st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=4), st.binary(max_size=20)
)
def test_hostile_files_raise_layout_errors_and_nothing_else(header, data):
    try:
        views = safetensors.decode(memoryview(header) if isinstance(header, bytes) else file_of(header, data))
    except LayoutError:
        return
    assert all(isinstance(view, TensorView) for view in views.values())


def manifest(**changes) -> pb.WeightsManifest:
    values = {
        "format": FORMAT,
        "run": "run",
        "version": 3,
        "trainer_step": 30,
        "published_at": 1.5,
        "payload_bytes": 2500,
        "payload_blake3": digest(bytes(96)),
        "chunk_bytes": 1024,
        "chunk_blake3": bytes(96),
        "publisher": "somebody",
    }
    return pb.WeightsManifest(**(values | changes))


def test_a_manifest_comes_back_as_it_went():
    back = decode_manifest(encode_manifest(manifest()), KEYS, 3, 10_000)
    assert back == manifest()
    assert chunk_count(back) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"format is {FORMAT + 1}"),
        ({"run": "other"}, "names run 'other'"),
        ({"version": 4}, "version 4, not 3"),
        ({"payload_bytes": 0}, "payload_bytes is 0"),
        ({"payload_bytes": 10_001}, "payload_bytes is 10001"),
        ({"chunk_bytes": 1}, "chunk_bytes is 1"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"payload_blake3": b"short"}, "5 bytes"),
        ({"chunk_blake3": bytes(64)}, "chunk_blake3 has 64 bytes; must be 96"),
        ({"chunk_blake3": b"x" * 96}, "payload_blake3 is not that of chunk_blake3"),
        ({"trainer_step": 2**63}, "trainer_step is 9223372036854775808"),
        ({"published_at": float("nan")}, "published_at is nan"),
        ({"published_at": float("inf")}, "published_at is inf"),
        ({"published_at": -1.0}, "published_at is -1.0"),
        ({"publisher": ""}, "publisher is ''"),
        ({"publisher": "x" * 65}, "publisher is 'xxx"),
        ({"publisher": "a/../b"}, "publisher is 'a/../b'"),
    ],
)
def test_manifests_that_lie_are_refused(changes, message):
    with pytest.raises(ManifestError, match=message):
        decode_manifest(encode_manifest(manifest(**changes)), KEYS, 3, 10_000)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_hostile_manifests_raise_manifest_errors_and_nothing_else(text):
    with pytest.raises(ManifestError):
        decode_manifest(text, KEYS, 3, 10_000)


NUMBERS = st.integers(-(10**400), 10**400) | st.floats() | st.sampled_from(["1e999", "NaN", "-0", "0x1", "AA=="])
FIELDS = [
    "format",
    "run",
    "version",
    "trainer_step",
    "published_at",
    "payload_bytes",
    "payload_blake3",
    "chunk_bytes",
    "chunk_blake3",
    "publisher",
]


@settings(deadline=None, max_examples=500)
@given(st.dictionaries(st.sampled_from([*FIELDS, "chunkBytes", "code"]), NUMBERS | JSON, min_size=1, max_size=3))
def test_manifests_with_hostile_fields_are_refused_or_hold_what_they_must(fields):
    text = json.dumps(json.loads(encode_manifest(manifest())) | fields).encode()
    try:
        back = decode_manifest(text, KEYS, 3, 10_000)
    except ManifestError:
        return
    assert (back.format, back.run, back.version, len(back.payload_blake3)) == (FORMAT, "run", 3, 32)
    assert 0 < back.payload_bytes <= 10_000
    assert 1 <= chunk_count(back) <= 10
    assert len(back.chunk_blake3) == 32 * chunk_count(back)
    assert 0 <= back.published_at < float("inf")


def test_manifests_larger_than_any_honest_one_are_refused():
    with pytest.raises(ManifestError, match="at most"):
        decode_manifest(b" " * (5 << 20), KEYS, 3, 10_000)


def test_all_keys_of_a_run_share_a_hash_tag():
    names = [KEYS.counter, KEYS.pointer, KEYS.manifest(1), KEYS.chunk(1, "token", 2)]
    assert len(set(names)) == 4
    assert all("{run}" in name for name in names)
    assert [KEYS.version_of(name) for name in names] == [None, None, 1, 1]
    assert Keys("other").version_of(KEYS.manifest(1)) is None


@pytest.mark.parametrize("run", ["", "a b", "a{b}", "x" * 65, "ü"])
def test_runs_that_would_break_key_names_are_refused(run):
    with pytest.raises(ValueError, match="must be 1 to 64"):
        Keys(run)
