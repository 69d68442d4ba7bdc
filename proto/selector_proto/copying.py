"""Large memory copied by several threads at once: between buffers, and to and from files."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

_MAX_THREADS = 4
# One thread copies at least so many bytes at once, for a second thread to be worth its while, and at most so many: a
# system call takes less than 2 GiB.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 4 << 20, 1 << 30


def copy_threads() -> int:
    """How many threads should copy at once: one for each processor that this process may use, and at most four, since
    more than fill a memory bus would only take turns."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MAX_THREADS, usable or 1)


def copy_all(room: memoryview, parts: Sequence[memoryview], threads: Executor) -> None:
    """Copies byte views back to back into memory."""
    target = np.frombuffer(room, np.uint8)
    pieces = [
        (target[start : start + len(piece)], np.frombuffer(piece, np.uint8)) for piece, start in _pieces(parts, 0)
    ]
    run = threads.map if len(pieces) > 1 else map
    for _ in run(lambda piece: np.copyto(*piece), pieces):
        pass


def write_all(file: int, parts: Sequence[memoryview], offset: int, threads: Executor) -> None:
    """Writes byte views back to back from `offset` on. Raises OSError; a mapping would raise a signal instead."""
    pieces = list(_pieces(parts, offset))
    run = threads.map if len(pieces) > 1 else map
    for _ in run(lambda piece: write(file, *piece), pieces):
        pass


def write(file: int, piece: memoryview, offset: int) -> None:
    """Writes one byte view at `offset`. Raises OSError."""
    done = 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], offset + done)


def read_all(file: int, room: memoryview, offset: int, threads: Executor) -> bool:
    """Fills `room` with the file's bytes from `offset` on; False if the file ends before. Raises OSError."""
    pieces = list(_pieces([room], offset))
    run = threads.map if len(pieces) > 1 else map
    return all(list(run(lambda piece: _filled(file, *piece), pieces)))


def _filled(file: int, room: memoryview, offset: int) -> bool:
    done = 0
    while done < len(room):
        if not (count := os.preadv(file, [room[done:]], offset + done)):
            return False
        done += count
    return True


def _pieces(parts: Sequence[memoryview], offset: int) -> Iterator[tuple[memoryview, int]]:
    """Views of `parts`, each with the place where it goes."""
    size = _piece_bytes(sum(map(len, parts)))
    for part in parts:
        for start in range(0, len(part), size):
            piece = part[start : start + size]
            yield piece, offset
            offset += len(piece)


def _piece_bytes(total: int) -> int:
    """There is one piece a thread: a copy of tens of megabytes is written past the caches, which is almost twice as
    fast as the same in pieces that would fit them."""
    return min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, -(-total // copy_threads())))
