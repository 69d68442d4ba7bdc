"""Tensors and byte strings through a payload and back; whatever comes from the wire ends in an array or a WireError."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from selector_proto.contract import sub_batch_size
from selector_proto.tensors import ALIGNMENT, BYTES, CHUNK_BYTES, FLOATS, INTEGERS, Payload, WireError, read, read_bytes
from selector_proto.v1 import selector_pb2 as pb

DTYPES = [np.float32, np.float16, np.uint8, np.int32, np.int64]
ANY = (*FLOATS, *INTEGERS, *BYTES)


def whole(payload: Payload) -> memoryview:
    return memoryview(b"".join(payload.chunks()))


@settings(deadline=None)
@given(st.lists(st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_side=0, max_side=9)))))
def test_arrays_come_back_as_they_went(arrays):
    payload = Payload()
    views = [payload.add(array) for array in arrays]
    data = whole(payload)
    assert len(data) == payload.nbytes
    assert zlib.crc32(data) == payload.crc32()
    for view, array in zip(views, arrays, strict=True):
        assert view.offset % ALIGNMENT == 0
        back = read(view, data, "x", ANY, [None] * array.ndim)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_a_large_payload_is_cut_into_even_chunks():
    payload = Payload()
    payload.add(np.arange(7, dtype=np.uint8))
    payload.add(np.zeros(3 * CHUNK_BYTES, np.uint8))
    sizes = [len(chunk) for chunk in payload.chunks()]
    assert sizes[:3] == [CHUNK_BYTES] * 3
    assert sum(sizes) == payload.nbytes


def test_transposed_and_big_endian_arrays_are_sent_right():
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    payload = Payload()
    view = payload.add(array)
    np.testing.assert_array_equal(read(view, whole(payload), "x", FLOATS, [3, 2]), array)


def test_other_dtypes_are_refused_rather_than_converted():
    with pytest.raises(TypeError, match="float64 cannot be sent"):
        Payload().add(np.zeros(3))


def test_bf16_is_widened_exactly():
    values = np.array([1.0, -2.5, 3.140625, np.inf, 0.0], np.float32)  # all exact in bf16
    data = memoryview((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    view = pb.Tensor(dtype=pb.DATA_TYPE_BF16, shape=[5])
    np.testing.assert_array_equal(read(view, data, "x", FLOATS, [5]), values)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_byte_strings_come_back_as_they_went(items):
    payload = Payload()
    packed = payload.add_bytes(items)
    assert read_bytes(packed, whole(payload), "x", len(items), 20) == items


@pytest.mark.parametrize(
    ("lengths", "data", "message"),
    [
        ([3, -1], b"ab", "x.lengths is -1; each must be 0 to 4 bytes"),
        ([5], b"abcde", "x.lengths is 5; each must be 0 to 4 bytes"),
        ([2, 2], b"abc", "x.data is 3 bytes; the lengths add up to 4"),
        ([2, 2], b"abcde", "x.data is 5 bytes; the lengths add up to 4"),
    ],
)
def test_lengths_that_do_not_fit_are_named(lengths, data, message):
    payload = Payload()
    packed = pb.PackedBytes(
        lengths=payload.add(np.array(lengths, np.int32)), data=payload.add(np.frombuffer(data, np.uint8))
    )
    with pytest.raises(WireError, match=message):
        read_bytes(packed, whole(payload), "x", len(lengths), 4)


def test_byte_strings_that_are_too_long_may_be_left_out():
    payload, seen = Payload(), []
    packed = payload.add_bytes([b"ab", b"much too long", b"", b"cdef", b"ghijk"])
    items = read_bytes(packed, whole(payload), "x", 5, 4, lambda *long: seen.append(long))
    assert items == [b"ab", b"", b"", b"cdef", b""]
    assert seen == [(1, 13), (4, 5)]


@pytest.mark.parametrize("lengths", [[2**62] * 4, [2**63 - 1, 1], [-1, 6], [6, 0], [9]])
def test_lengths_beyond_the_data_are_refused_also_where_long_ones_may_be_left_out(lengths):
    payload, seen = Payload(), []
    packed = pb.PackedBytes(
        lengths=payload.add(np.array(lengths, np.int64)), data=payload.add(np.frombuffer(b"abcde", np.uint8))
    )
    with pytest.raises(WireError):
        read_bytes(packed, whole(payload), "x", len(lengths), 4, lambda *long: seen.append(long))
    assert not seen


@settings(deadline=None, max_examples=300)
@given(
    dtype=st.integers(-1, 8),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9), max_size=5),
    offset=st.integers(0, 2**64 - 1) | st.integers(0, 70),
    data=st.binary(max_size=64),
)
def test_hostile_views_raise_wire_errors_and_nothing_else(dtype, shape, offset, data):
    view = pb.Tensor(dtype=dtype, shape=shape, offset=offset)
    try:
        array = read(view, memoryview(data), "x", ANY, [None] * len(shape))
    except WireError as error:
        assert error.field.startswith("x.")
    else:
        assert list(array.shape) == shape
        assert array.size <= len(data)


@settings(deadline=None, max_examples=200)
@given(message=st.binary(max_size=80), data=st.binary(max_size=64))
def test_hostile_byte_strings_raise_wire_errors_and_nothing_else(message, data):
    packed = pb.PackedBytes()
    try:
        packed.ParseFromString(message)
    except Exception:
        return
    for count in (0, 1, 3):
        try:
            items = read_bytes(packed, memoryview(data), "x", count, 16)
        except WireError:
            continue
        assert len(items) == count
        assert read_bytes(packed, memoryview(data), "x", count, 16, lambda *_: None) == items


@pytest.mark.parametrize(
    ("candidates", "ratio", "picks"),
    [(163_840, 0.8, 32_768), (327_680, 0.9, 32_768), (65_536, 0.5, 32_768), (640, 0.8, 128), (10, 0.95, 0)],
)
def test_sub_batch_size_is_exact(candidates, ratio, picks):
    assert sub_batch_size(candidates, ratio) == picks


def test_tensors_of_torch_on_their_way_from_a_graph():
    values = torch.randn(5, 3, requires_grad=True)
    payload = Payload()
    plain, narrow = payload.add(values), payload.add(values.bfloat16())
    data = memoryview(b"".join(payload.chunks()))
    assert np.array_equal(read(plain, data, "plain", FLOATS, [5, 3]), values.detach().numpy())
    assert np.array_equal(read(narrow, data, "narrow", FLOATS, [5, 3]), values.detach().bfloat16().float().numpy())
