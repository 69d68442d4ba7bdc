"""Presents a snapshot as one safetensors file at wire precision, which is cast piece by piece as the pieces are
sent."""

import sys
from bisect import bisect_right
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from selector_proto.safetensors import ITEM_BYTES, header
from selector_proto.weights.layout import CANARY

from selector_client.publishing.snapshot import Snapshot

Precision = Literal["bf16", "fp16", "fp32"]

# Smaller tensors (norms, biases, logit scale) keep their precision, because they weigh nothing.
_SMALL = 1024
# So many values are cast at once. Torch would spread more than that over all of the trainer's threads.
_SERIAL = (1 << 15) - 1


class WirePayload:
    """A payload of `size` bytes, any part of which can be read, by several threads at once. The snapshot must not
    change meanwhile."""

    def __init__(self, snapshot: Snapshot, precision: Precision) -> None:
        wire = {
            name: dtype if name.startswith(CANARY) else _wire(dtype, values, precision)
            for name, (dtype, values) in snapshot.tensors.items()
        }
        head, self.size = header((name, wire[name], values.shape) for name, (_, values) in snapshot.tensors.items())
        self._parts: list[tuple[NDArray[Any], str, bool]] = [(np.frombuffer(head, np.uint8), "U8", False)]
        self._starts = [0]
        end = len(head)
        for name, (dtype, values) in snapshot.tensors.items():
            self._parts.append((values.reshape(-1), wire[name], wire[name] != dtype))
            self._starts.append(end)
            end += values.size * ITEM_BYTES[wire[name]]

    def read(self, start: int, room: NDArray[np.uint8]) -> None:
        """Puts the bytes from `start` on into `room`, uint8 [n], which must not reach beyond the payload's end."""
        index, done = bisect_right(self._starts, start) - 1, 0
        while done < len(room):
            values, dtype, narrow = self._parts[index]
            offset = start + done - self._starts[index]
            count = min(len(room) - done, values.size * ITEM_BYTES[dtype] - offset)
            if count > 0:  # a tensor may be empty
                part = room[done : done + count]
                if narrow:
                    _cast(values, dtype, offset, part)
                else:
                    part[:] = values.view(np.uint8)[offset : offset + count]
                done += count
            index += 1


def _wire(dtype: str, values: NDArray[Any], precision: Precision) -> str:
    narrow = dtype == "F32" and values.size >= _SMALL and precision != "fp32"
    return precision.upper().replace("FP", "F") if narrow else dtype


def _cast(values: NDArray[np.float32], dtype: str, offset: int, part: NDArray[np.uint8]) -> None:
    """Casts float32 `values` to 16-bit floats, and puts the bytes from `offset` on into `part`."""
    first, last = offset // 2, -(-(offset + len(part)) // 2)
    whole = offset % 2 == 0 and len(part) % 2 == 0
    narrow = part.view(np.uint16) if whole else np.empty(last - first, np.uint16)
    if dtype == "F16":
        narrow.view(np.float16)[:] = values[first:last]
    else:
        _to_bf16(values[first:last], narrow)
    if not whole:
        part[:] = narrow.view(np.uint8)[offset % 2 : offset % 2 + len(part)]


def _to_bf16(values: NDArray[np.float32], narrow: NDArray[np.uint16]) -> None:
    """Rounds float32 values to the nearest bfloat16, ties to even. NaN stays NaN."""
    if (torch := sys.modules.get("torch")) is not None:  # torch is nine times as fast as numpy
        target, source = torch.from_numpy(narrow.view(np.int16)).view(torch.bfloat16), torch.from_numpy(values)
        torch._foreach_copy_(target.split(_SERIAL), source.split(_SERIAL))
        return
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    narrow[:] = rounded
    broken = np.isnan(values)
    if broken.any():
        narrow[broken] = 0x7FC0
