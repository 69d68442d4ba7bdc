"""What is sent of a snapshot, any part of it at any time, against safetensors made of torch's own casts."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_client.publishing.snapshot import Snapshot
from selector_client.publishing.wire_payload import WirePayload
from selector_proto import safetensors

RNG = np.random.default_rng(0)
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, 3.4e38, 1.00390625, 1.01171875, -1.00390625], np.float32)
STATE = {
    "large": RNG.standard_normal((300, 41)).astype(np.float32),
    "odd bytes": RNG.integers(0, 256, 7, np.uint8),
    "after them": np.concatenate([ODD, RNG.standard_normal(5000).astype(np.float32)]),
    "empty": np.zeros((0, 4), np.float32),
    "small": np.float32(2.5),
    "counter": np.array(7, np.int64),
}


def payload(precision, state=None):
    snapshot = Snapshot()
    with ThreadPoolExecutor(2) as threads:
        snapshot.fill((state or STATE).items(), threads)
    return WirePayload(snapshot, precision)


def read(whole, start, size) -> bytes:
    room = np.full(size, 77, np.uint8)
    whole.read(start, room)
    return room.tobytes()


@pytest.fixture(params=["torch", "numpy"])
def casting(request, monkeypatch):
    """With torch, and as where a trainer has none."""
    if request.param == "numpy":
        monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)])
@pytest.mark.usefixtures("casting")
def test_values_are_those_that_torch_casts(precision, kind):
    whole = payload(precision)
    views = safetensors.decode(memoryview(read(whole, 0, whole.size)))
    assert list(views) == list(STATE)
    for name, values in STATE.items():
        expected = torch.from_numpy(np.asarray(values).copy())
        if kind is not None and values.dtype == np.float32 and values.size >= 1024:
            expected = expected.to(kind)
        got = torch.frombuffer(bytearray(views[name].data) or bytearray(8), dtype=expected.dtype)[: expected.numel()]
        torch.testing.assert_close(got.reshape(expected.shape), expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_is_that_part_of_the_whole(data):
    whole = payload(data.draw(st.sampled_from(["bf16", "fp16", "fp32"])))
    complete = read(whole, 0, whole.size)
    start = data.draw(st.integers(0, whole.size - 1))
    size = data.draw(st.integers(0, whole.size - start))
    assert read(whole, start, size) == complete[start : start + size]


def test_arrays_of_the_other_byte_order_travel_as_values():
    whole = payload("fp32", {"w": np.arange(5, dtype=">f4")})
    views = safetensors.decode(memoryview(read(whole, 0, whole.size)))
    assert np.frombuffer(views["w"].data, "<f4").tolist() == [0, 1, 2, 3, 4]
