"""Large buffers of host memory that are used again: for versions of the weights, and for payloads of requests.

Memory fresh from the system costs more than everything else in taking over a version or receiving a request: each page
is filled with zeros at its first touch, and other threads of the process wait meanwhile.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 64  # bytes, as kernels of ONNX Runtime and torch like it
_STEP = _ALIGNED // 4


class Pool:
    """Hands out blocks of memory and takes them back when nobody holds them any more. At most `spare` blocks that are
    not in use are kept. Several threads may use it."""

    def __init__(self, spare: int = 1) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=spare)

    def take(self, size: int) -> NDArray[np.uint8]:
        """An aligned uint8 array [size] of no certain content. It is the caller's as long as the array, a view of it or
        a tensor made of one of them exists."""
        if (block := self._spare(size)) is None:
            block = np.empty(size + size // 64 + _ALIGNED, np.uint8)  # the next one may be a little larger
        # Whatever uses the block holds on to the lease, and nothing else does: when it goes, the block is free.
        lease = (ctypes.c_uint8 * len(block)).from_buffer(block.data)
        weakref.finalize(lease, self._free.append, block).atexit = False
        start = -block.ctypes.data % _ALIGNED
        return np.frombuffer(memoryview(lease), np.uint8)[start : start + size]

    def floats(self, counts: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
        """By name an aligned part of one float32 block, with so many values as `counts` says."""
        starts = dict(zip(counts, accumulate(map(_aligned, counts.values()), initial=0), strict=False))
        block = self.take(4 * sum(map(_aligned, counts.values()))).view(np.float32)
        return {name: block[starts[name] : starts[name] + count] for name, count in counts.items()}

    def clear(self) -> int:
        """Lets the blocks go that are not in use, and returns their bytes."""
        freed = 0
        while self._free:
            freed += len(self._free.pop())
        return freed

    def _spare(self, size: int) -> NDArray[np.uint8] | None:
        try:
            block = self._free.pop()
        except IndexError:
            return None
        # A block of another model's size is let go.
        return block if size + _ALIGNED <= len(block) <= 2 * size + (1 << 20) else None


def _aligned(count: int) -> int:
    """The number of float32 values up to where the next part may begin."""
    return -(-count // _STEP) * _STEP
