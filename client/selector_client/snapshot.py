"""Copies of a trainer's weights that later training steps cannot change, in buffers that are used again."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from selector_proto.safetensors import header
from selector_proto.weights import CANARY

Precision = Literal["bf16", "fp16", "fp32"]

# Wrappers put these in front of parameter names; the sidecar's bundle does not know them.
_PREFIXES = ("module.", "_orig_mod.")
# Smaller tensors (norms, biases, logit scale) keep their precision: they weigh nothing.
_SMALL = 1024
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}
# Values cast at once: few enough to stay in a core's cache.
_BLOCK = 1 << 18
# The same for torch: it would spread more over all of the trainer's threads.
_TORCH_BLOCK = 1 << 14


@dataclass
class Snapshot:
    """Weights of one step: safetensors dtype and values by name. `arrays` are buffers to be filled again."""

    step: int = 0
    taken_at: float = 0.0
    tensors: dict[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def fill(self, state: Mapping[str, Any]) -> None:
        """Copies every tensor or array of `state` to this host. Raises TypeError for a dtype that cannot travel."""
        self.tensors = {stripped(name): self._copied(name, value) for name, value in state.items()}

    def _copied(self, name: str, value: Any) -> tuple[str, NDArray[Any]]:
        torch = sys.modules.get("torch")  # a tensor of torch without importing it
        if torch is not None and isinstance(value, torch.Tensor):
            return self._copied_tensor(name, value.detach(), torch)
        array = np.asarray(value)
        if array.dtype.name not in _NAMES:
            raise TypeError(f"{name} has dtype {array.dtype}, which cannot be published")
        buffer = self._buffer(name, array.shape, array.dtype)
        np.copyto(buffer, array)
        return _NAMES[array.dtype.name], buffer

    def _copied_tensor(self, name: str, value: Any, torch: Any) -> tuple[str, NDArray[Any]]:
        if value.dtype == torch.bfloat16:  # numpy has none: its bits travel
            dtype, kind = "BF16", np.dtype(np.int16)
            value = value.contiguous().view(torch.int16)
        else:
            if (type_name := str(value.dtype).removeprefix("torch.")) not in _NAMES:
                raise TypeError(f"{name} has dtype {value.dtype}, which cannot be published")
            dtype, kind = _NAMES[type_name], np.dtype(type_name)
        buffer = self._buffer(name, tuple(value.shape), kind)
        torch.from_numpy(buffer).copy_(value)
        return dtype, buffer

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory that was touched before: fresh pages cost more than the copy itself."""
        buffer = self.arrays.get(name)
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            self.arrays[name] = buffer = np.empty(shape, dtype)
        return buffer


def stripped(name: str) -> str:
    """A parameter's name without what wrappers put in front of it."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def payload(snapshot: Snapshot, precision: Precision) -> tuple[int, Iterator[memoryview]]:
    """The snapshot as one safetensors file: its length, and its bytes in order. Tensors are cast on the way, block by
    block, while earlier blocks travel."""
    wire = {
        name: dtype if name.startswith(CANARY) else _wire(dtype, values, precision)
        for name, (dtype, values) in snapshot.tensors.items()
    }
    head, size = header((name, wire[name], values.shape) for name, (_, values) in snapshot.tensors.items())

    def parts() -> Iterator[memoryview]:
        yield memoryview(head)
        for name, (dtype, values) in snapshot.tensors.items():
            flat = values.reshape(-1)
            for start in range(0, len(flat), _BLOCK):
                block = flat[start : start + _BLOCK]
                yield (block if wire[name] == dtype else _narrowed(block, wire[name])).view(np.uint8).data

    return size, parts()


def _wire(dtype: str, values: NDArray[Any], precision: Precision) -> str:
    narrow = dtype == "F32" and values.size >= _SMALL and precision != "fp32"
    return precision.upper().replace("FP", "F") if narrow else dtype


def _narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    return values.astype(np.float16) if dtype == "F16" else _to_bf16(values)


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest even; NaN stays NaN."""
    if (torch := sys.modules.get("torch")) is not None:  # nine times as fast as numpy
        narrow = np.empty(values.shape, np.uint16)
        target, source = torch.from_numpy(narrow.view(np.int16)).view(torch.bfloat16), torch.from_numpy(values)
        for part, block in zip(target.split(_TORCH_BLOCK), source.split(_TORCH_BLOCK), strict=True):
            part.copy_(block)
        return narrow
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    narrow = rounded.astype(np.uint16)
    if np.isnan(values).any():
        narrow[np.isnan(values)] = 0x7FC0
    return narrow
