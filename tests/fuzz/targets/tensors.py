"""Tensors on the wire."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
from google.protobuf.message import DecodeError
from selector_proto.tensors import BYTES, FLOATS, INTEGERS, WireError, read, read_bytes
from selector_proto.v1 import selector_pb2 as pb
from support import wire

from fuzz.frames import each, joined, split
from fuzz.mutate_proto import message
from fuzz.mutation import either, number, raw
from fuzz.target import Decode, Target


@contextmanager
def tensors(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        first, payload = split(data, 2)[:2]
        try:
            packed = pb.PackedBytes.FromString(first)
        except DecodeError:
            return "unparsed"
        view = memoryview(payload)
        rank = len(packed.data.shape)
        array = read(packed.data, view, "data", (*FLOATS, *INTEGERS, *BYTES), [None] * min(rank, _MOST_DIMENSIONS))
        assert array.nbytes <= 2 * len(payload), "an array larger than its payload"
        assert array.shape == tuple(packed.data.shape)
        array.sum()  # touches every byte
        count = packed.lengths.shape[0] if packed.lengths.shape else 0
        items = read_bytes(packed, view, "packed", count, 64)
        assert len(items) == count
        assert all(len(item) <= 64 for item in items)
        assert b"".join(items) == array.tobytes()
        return "strings"

    yield decode


def tensor_seeds() -> list[bytes]:
    seeds = []
    for dtype, code in (("<f4", 1), ("<f2", 2), ("<u2", 3), ("u1", 4), ("<i4", 5), ("<i8", 6)):
        request = wire.Request()
        lengths = request.add(np.array([0, 3, 9], np.int32))
        tensor = request.add(
            np.arange(12, dtype=dtype).reshape(3, 4) if code != 4 else np.arange(12, dtype=dtype), code
        )
        packed = pb.PackedBytes(lengths=lengths, data=tensor)
        seeds.append(joined([packed.SerializeToString(), request.payload]))
    return seeds


def _lengths(random: Random, data: bytes, other: bytes) -> bytes:
    """Takes from one length what it adds to another: their sum stays right."""
    packed, payload, *_ = split(data, 2)
    try:
        lengths = pb.PackedBytes.FromString(packed).lengths
        values = np.frombuffer(payload, _NUMBERS[lengths.dtype], lengths.shape[0], lengths.offset).copy()
        one, two = random.sample(range(len(values)), 2)
        step = number(random, -(1 << 31), (1 << 31) - 1)
        with np.errstate(over="ignore"):
            values[one], values[two] = values[one] + step, values[two] - step
    except (DecodeError, ValueError, KeyError, IndexError, OverflowError):
        return _PARTS(random, data, other)
    end = lengths.offset + values.nbytes
    return joined([packed, payload[: lengths.offset] + values.tobytes() + payload[end:]])


# numpy has no arrays of more than 64; the fields of requests have at most four.
_MOST_DIMENSIONS = 8
_NUMBERS = {pb.DATA_TYPE_I32: "<i4", pb.DATA_TYPE_I64: "<i8"}
_PARTS = each([message(pb.PackedBytes), raw()])
TARGETS = (
    Target(
        "tensors",
        "Tensor, PackedBytes and their payload",
        tensors,
        tensor_seeds,
        either(_PARTS, _PARTS, _PARTS, _lengths),
        (WireError,),
        share=1.5,
    ),
)
