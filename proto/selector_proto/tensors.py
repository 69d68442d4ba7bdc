"""Tensors on the wire: a payload of bytes, and `Tensor` messages that are views into it.

Writing never copies an array; reading never copies one either, except BF16, which numpy lacks and which is
widened to float32.
"""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selector_proto.v1 import selector_pb2 as pb

Array = NDArray[Any]

# One stream message carries so many bytes of a payload. It was the fastest size measured, and is below the 4 MiB that a
# receiver takes by default.
CHUNK_BYTES = 1 << 20
# Views start at multiples of this, so that a reader can use them in place.
ALIGNMENT = 16
# No tensor is larger than what an array can address.
MAX_TENSOR_BYTES = 2**62

_STORAGE: dict[pb.DataType.ValueType, np.dtype[Any]] = {
    pb.DATA_TYPE_FP32: np.dtype("<f4"),
    pb.DATA_TYPE_FP16: np.dtype("<f2"),
    pb.DATA_TYPE_BF16: np.dtype("<u2"),
    pb.DATA_TYPE_U8: np.dtype("u1"),
    pb.DATA_TYPE_I32: np.dtype("<i4"),
    pb.DATA_TYPE_I64: np.dtype("<i8"),
}
_DATA_TYPE = {dtype: code for code, dtype in _STORAGE.items() if code != pb.DATA_TYPE_BF16}

FLOATS = (pb.DATA_TYPE_FP32, pb.DATA_TYPE_FP16, pb.DATA_TYPE_BF16)
INTEGERS = (pb.DATA_TYPE_I32, pb.DATA_TYPE_I64)
BYTES = (pb.DATA_TYPE_U8,)


class WireError(ValueError):
    """A message from the other side is malformed. `field` names what, `value` is what it was, `limit` what it broke."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        shown = str(value)
        self.field, self.limit = field, limit
        self.value = shown if len(shown) <= 200 else shown[:200] + "…"
        super().__init__(f"{field} is {self.value}; {limit}")


class Payload:
    """Collects arrays for one request. It keeps references and copies nothing that is contiguous already."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._parts: list[memoryview] = []

    def add(self, array: ArrayLike) -> pb.Tensor:
        """Appends an array of float32, float16, bfloat16 (of torch or JAX), uint8, int32 or int64 and returns the view
        that names it.

        Raises TypeError for any other dtype: a silent conversion would change the trainer's numbers.
        """
        values, code = _array(array)
        little = values.dtype.newbyteorder("<")
        if code is None:
            raise TypeError(
                f"dtype {values.dtype} cannot be sent; use float32, float16, bfloat16, uint8, int32 or int64"
            )
        self._append(memoryview(bytes(-self.nbytes % ALIGNMENT)))
        view = pb.Tensor(dtype=code, shape=values.shape, offset=self.nbytes)
        if values.size:
            self._append(values.astype(little, copy=False).reshape(-1).view(np.uint8).data)
        return view

    def add_bytes(self, items: Sequence[bytes]) -> pb.PackedBytes:
        """Appends B byte strings: their lengths, then all of them back to back."""
        lengths = np.fromiter((len(item) for item in items), dtype=np.int64, count=len(items))
        data = np.frombuffer(b"".join(items), dtype=np.uint8)
        return pb.PackedBytes(lengths=self.add(lengths), data=self.add(data))

    def chunks(self) -> Iterator[bytes]:
        """The payload in pieces that each fit one message."""
        return (bytes(piece) for piece in _cut(self._parts, CHUNK_BYTES))

    def parts(self) -> Sequence[memoryview]:
        """The payload as views of the arrays, back to back."""
        return tuple(self._parts)

    def crc32(self) -> int:
        """The CRC-32 of the whole payload."""
        crc = 0
        for part in self._parts:
            crc = zlib.crc32(part, crc)
        return crc

    def _append(self, part: memoryview) -> None:
        if len(part):
            self._parts.append(part)
            self.nbytes += len(part)


def _cut(parts: Iterable[memoryview], size: int) -> Iterator[memoryview]:
    """The concatenation of `parts` in pieces of `size` bytes, the last one shorter.

    Copies only where a piece spans two parts.
    """
    piece: list[memoryview] = []
    room = size
    for part in parts:
        start = 0
        while start < len(part):
            piece.append(part[start : start + room])
            start += len(piece[-1])
            room -= len(piece[-1])
            if room == 0:
                yield _joined(piece)
                piece, room = [], size
    if piece:
        yield _joined(piece)


def _joined(piece: list[memoryview]) -> memoryview:
    return piece[0] if len(piece) == 1 else memoryview(b"".join(piece))


def _array(array: Any) -> tuple[Array, pb.DataType.ValueType | None]:
    """The array as numpy's, and its type on the wire, None if it has none. bfloat16, which numpy lacks, becomes its
    bits."""
    torch = sys.modules.get("torch")  # without importing it: who passes a tensor of torch has done so
    if torch is not None and isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        if array.dtype == torch.bfloat16:
            return array.contiguous().view(torch.int16).numpy().view(np.uint16), pb.DATA_TYPE_BF16
    values = np.asarray(array, order="C")
    if values.dtype.name == "bfloat16":  # ml_dtypes has one, which JAX uses
        return values.view(np.uint16), pb.DATA_TYPE_BF16
    return values, _DATA_TYPE.get(values.dtype.newbyteorder("<"))


def read(
    tensor: pb.Tensor,
    payload: memoryview,
    field: str,
    dtypes: Sequence[pb.DataType.ValueType],
    shape: Sequence[int | None],
) -> Array:
    """The array that `tensor` views in `payload`; read-only if the payload is.

    `shape` is what is expected, None for a dimension that may have any size. Floats may come out as float16 or
    float32 (BF16 is widened). Raises WireError for another dtype, rank or size, and for a view that leaves the
    payload. Nothing is allocated before all of that holds.
    """
    if tensor.dtype not in dtypes:
        names = " or ".join(pb.DataType.Name(code).removeprefix("DATA_TYPE_") for code in dtypes)
        found = pb.DataType.Name(tensor.dtype) if tensor.dtype in pb.DataType.values() else tensor.dtype
        raise WireError(f"{field}.dtype", str(found).removeprefix("DATA_TYPE_"), f"must be {names}")
    sizes = tuple(tensor.shape)
    fits = len(sizes) == len(shape) and all(s >= 0 and e in (None, s) for s, e in zip(sizes, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise WireError(f"{field}.shape", list(sizes), f"must be [{wanted}]")
    dtype = _STORAGE[tensor.dtype]
    count = prod(sizes)
    # An empty tensor has no bytes that would bound its other dimensions, and numpy multiplies them.
    if prod(size or 1 for size in sizes) * dtype.itemsize > MAX_TENSOR_BYTES:
        raise WireError(f"{field}.shape", list(sizes), f"at most {MAX_TENSOR_BYTES} bytes can be addressed")
    end = tensor.offset + count * dtype.itemsize
    if end > len(payload):
        raise WireError(f"{field}.offset", tensor.offset, f"its view ends at byte {end} of {len(payload)}")
    flat = np.frombuffer(payload, dtype=dtype, count=count, offset=tensor.offset)
    if tensor.dtype == pb.DATA_TYPE_BF16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return np.require(flat.reshape(sizes), requirements="A")


def read_bytes(
    packed: pb.PackedBytes,
    payload: memoryview,
    field: str,
    count: int,
    longest: int,
    too_long: Callable[[int, int], None] | None = None,
) -> list[bytes]:
    """The `count` byte strings of `packed`, each at most `longest` bytes; raises WireError as `read` does. With
    `too_long`, a longer one is no error: this is called with its index and its length, and it comes out empty."""
    lengths = read(packed.lengths, payload, f"{field}.lengths", INTEGERS, [count]).astype(np.int64)
    data = read(packed.data, payload, f"{field}.data", BYTES, [None])
    # One that is longer than all of them could make the sums below overflow.
    most = longest if too_long is None else max(longest, len(data))
    if count and (lengths.min() < 0 or lengths.max() > most):
        worst = int(lengths.max() if lengths.max() > most else lengths.min())
        raise WireError(f"{field}.lengths", worst, f"each must be 0 to {longest} bytes")
    if too_long is not None:
        for index in np.flatnonzero(lengths > longest).tolist():
            too_long(index, int(lengths[index]))
    ends = np.cumsum(lengths)
    if (int(ends[-1]) if count else 0) != len(data):
        raise WireError(f"{field}.data", f"{len(data)} bytes", f"the lengths add up to {ends[-1] if count else 0}")
    starts = np.where(lengths > longest, ends, ends - lengths)
    return [bytes(data[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
