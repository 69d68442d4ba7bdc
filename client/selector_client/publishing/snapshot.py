"""Copies a trainer's weights into buffers that later training steps cannot change, and that are used again."""

import math
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
    "bfloat16": "BF16",
}
_WIRE = frozenset(_NAMES.values())
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Base:
    """A whole version on which others rest: its number, the digest in its manifest, and samples of what was frozen."""

    version: int
    blake3: bytes
    samples: dict[str, bytes]


@dataclass
class Snapshot:
    """The weights of one step, taken at a time.monotonic(): by name, the safetensors dtype and the values. `left_out`
    has, by name, the dtypes of what cannot travel. `base` is the whole version that has what is not in here, None if
    nothing is missing; `samples` are those of the frozen parameters, see `frozen`. `arrays` are buffers that are filled
    again."""

    step: int = 0
    taken_at: float = 0.0
    tensors: dict[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    base: Base | None = None
    samples: dict[str, bytes] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def fill(self, state: Iterable[tuple[str, Any]], threads: Executor, most_bytes: float = math.inf) -> None:
        """Copies every tensor or array of `state`, with its name, to this host, about `most_bytes` at once. What has a
        dtype that cannot travel is left out. Raises whatever numpy or torch raise when memory runs out."""
        self.tensors, self.left_out = {}, {}
        copies, size, devices = list[tuple[NDArray[Any], NDArray[Any]]](), 0, set[Any]()
        for name, value in state:
            dtype, source = _source(value)
            if dtype not in _WIRE:
                self.left_out[name] = dtype
                continue
            buffer = self._buffer(name, tuple(source.shape), source)
            self.tensors[name] = dtype, buffer
            if isinstance(source, np.ndarray):
                copies += _pieces(buffer, source)
                if (size := size + source.nbytes) >= most_bytes:
                    _copy(copies, threads)
                    size = 0
            else:
                sys.modules["torch"].from_numpy(buffer).copy_(source, non_blocking=source.is_cuda)
                devices |= {source.device} if source.is_cuda else set()
            del value, source  # they are let go before the next one is gathered
        _copy(copies, threads)
        for device in devices:
            sys.modules["torch"].cuda.current_stream(device).synchronize()
        self.arrays = {name: array for name, array in self.arrays.items() if name in self.tensors}

    def _buffer(self, name: str, shape: tuple[int, ...], source: Any) -> NDArray[Any]:
        """Returns memory that was touched before where there is some, for fresh pages cost more than the copy itself.
        It is page-locked for what comes from a device, which copies into other memory at a fifth of the speed."""
        buffer, on_host = self.arrays.get(name), isinstance(source, np.ndarray)
        # The buffer has the byte order of this machine, which is that of what travels.
        dtype = np.dtype(source.dtype.name if on_host else str(source.dtype).removeprefix("torch."))
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            if on_host:
                buffer = np.empty(shape, dtype)
            else:
                buffer = sys.modules["torch"].empty(shape, dtype=source.dtype, pin_memory=source.is_cuda).numpy()
            self.arrays[name] = buffer
        return buffer


def _source(value: Any) -> tuple[str, Any]:
    """Returns the safetensors dtype of a tensor or array, and what to copy: an array, or a tensor if it is not on this
    host. What cannot travel has the name of its own dtype or type instead."""
    torch = sys.modules.get("torch")  # this recognises torch's tensors without importing torch
    if torch is None or not isinstance(value, torch.Tensor):
        try:
            value = np.asarray(value)
        except ValueError:  # these are lists of lists that are no array
            return type(value).__name__, value
        return _NAMES.get(value.dtype.name, value.dtype.name), value
    value = value.detach()
    dtype = str(value.dtype if value.layout is torch.strided else value.layout).removeprefix("torch.")
    if dtype not in _NAMES:
        return dtype, value
    if value.dtype == torch.bfloat16:  # numpy has no such dtype, so its bits travel
        value = value.contiguous().view(torch.int16)
    return _NAMES[dtype], value.numpy() if value.device.type == "cpu" else value


def _copy(copies: list[tuple[NDArray[Any], NDArray[Any]]], threads: Executor) -> None:
    for _ in threads.map(lambda copy: np.copyto(*copy), copies):
        pass
    copies.clear()


def _pieces(target: NDArray[Any], source: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yields target and source cut into pieces that threads can share."""
    rows = max(1, _PIECE_BYTES * len(target) // max(1, target.nbytes)) if target.ndim else 1
    if not target.ndim or rows >= len(target):
        yield target, source
        return
    for start in range(0, len(target), rows):
        yield target[start : start + rows], source[start : start + rows]
