"""The safetensors layout, written and read without copies and without a framework.

8 bytes little-endian header length, a JSON header, then the tensors back to back:
https://huggingface.co/docs/safetensors. Written here because the library's numpy side has no BF16 and copies
every tensor. Reading trusts nothing: every number is checked before it is used.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "F64": 8, "BOOL": 1}
# A header larger than this is hostile: 100,000 tensors with long names fit.
MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 100_000


class LayoutError(ValueError):
    """The bytes are no well-formed safetensors file; the message says what is wrong."""


@dataclass(frozen=True)
class TensorView:
    """One tensor: its dtype by safetensors' name ("F32", "BF16", …), its shape, and its little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """What a file of these (name, dtype, shape) begins with, and how long the whole file is. Their bytes follow in
    the same order, with nothing in between."""
    entries: dict[str, object] = {}
    start = 0
    for name, dtype, shape in tensors:
        end = start + prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    head = len(text).to_bytes(8, "little") + text
    return head, len(head) + start


def encode(tensors: Mapping[str, TensorView]) -> Iterator[memoryview]:
    """Yields the file in pieces: the header, then each tensor's own buffer, in the mapping's order."""
    yield memoryview(header((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())[0])
    for tensor in tensors.values():
        if len(tensor.data):
            yield tensor.data


def decode(file: memoryview) -> dict[str, TensorView]:
    """The tensors of a whole file, as views into it. Raises LayoutError."""
    if len(file) < 8:
        raise LayoutError(f"file of {len(file)} bytes has no header")
    length = int.from_bytes(file[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(file) - 8):
        raise LayoutError(f"header length {length} exceeds the file or {MAX_HEADER_BYTES} bytes")
    header = _header(bytes(file[8 : 8 + length]))
    data = file[8 + length :]
    views: dict[str, TensorView] = {}
    end = 0
    for name, entry in sorted(header.items(), key=_offset):
        views[name], start, stop = _view(name, entry, data)
        if start != end:
            raise LayoutError(f"tensor {name!r} starts at byte {start}, the one before it ends at {end}")
        end = stop
    if end != len(data):
        raise LayoutError(f"tensors end at byte {end} of {len(data)}")
    return views


def entries(header: bytes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields name, dtype and shape of each tensor of a file whose header is `header`, without its length. Raises
    LayoutError."""
    for name, entry in _header(header).items():
        yield name, *_described(name, entry)


def _header(text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise LayoutError("header is not a JSON object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise LayoutError(f"{len(header)} tensors; at most {MAX_TENSORS}")
    return header


def _offset(item: tuple[str, object]) -> tuple[int, int]:
    """Where a header entry says that its tensor lies. Malformed entries come first; `_view` refuses them."""
    match item[1]:
        case {"data_offsets": [int(start), int(end)]}:
            return start, end
    return -1, -1


def _described(name: str, entry: object) -> tuple[str, tuple[int, ...]]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(), int()]}:
            pass
        case _:
            raise LayoutError(f"tensor {name!r} has a malformed entry")
    if dtype not in ITEM_BYTES:
        raise LayoutError(f"tensor {name!r} has dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}")
    if len(shape) > 16 or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise LayoutError(f"tensor {name!r} has shape {str(shape)[:200]}")
    return dtype, tuple(shape)


def _view(name: str, entry: object, data: memoryview) -> tuple[TensorView, int, int]:
    dtype, shape = _described(name, entry)
    start, end = _offset((name, entry))
    if not 0 <= start <= end <= len(data):
        raise LayoutError(f"tensor {name!r} lies at bytes {start} to {end} of {len(data)}")
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise LayoutError(f"tensor {name!r} has {end - start} bytes, its dtype and shape need another number")
    return TensorView(dtype, shape, data[start:end]), start, end
