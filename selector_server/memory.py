"""Host memory for sets of weights, used again when nobody uses it any more.

Memory fresh from the system costs more than everything else in taking over a version: each page is filled with zeros
at its first touch, and other threads of the process wait meanwhile.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 64  # bytes: what ONNX Runtime's and torch's kernels like


class Pool:
    """Hands out blocks. At most `spare` blocks that are not in use are kept; safe to use from several threads."""

    def __init__(self, spare: int = 1) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=spare)

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes of no certain content, aligned. They are the caller's as long as the array, a view of it or a
        tensor made of one of them exists."""
        if (block := self._spare(size)) is None:
            block = np.empty(size + size // 64 + _ALIGNED, np.uint8)  # the next one may be a little larger
        # Whatever uses the block holds on to this object, and nothing else does: when it goes, the block is free.
        lease = (ctypes.c_uint8 * len(block)).from_buffer(block)
        weakref.finalize(lease, self._free.append, block).atexit = False
        start = -block.ctypes.data % _ALIGNED
        return np.frombuffer(lease, np.uint8)[start : start + size]

    def parts(self, sizes: Mapping[str, int]) -> dict[str, NDArray[np.uint8]]:
        """One block for all of these, each aligned."""
        starts = dict(zip(sizes, accumulate(map(_aligned, sizes.values()), initial=0), strict=False))
        block = self.take(sum(map(_aligned, sizes.values())))
        return {name: block[starts[name] : starts[name] + size] for name, size in sizes.items()}

    def _spare(self, size: int) -> NDArray[np.uint8] | None:
        try:
            block = self._free.pop()
        except IndexError:
            return None
        # One of another model's size is let go.
        return block if size + _ALIGNED <= len(block) <= 2 * size + (1 << 20) else None


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
