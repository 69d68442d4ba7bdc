"""Payloads in files that two processes of one host see: their names, their header, and whose owner is dead.

A file is a header, then the payload from byte PAYLOAD_OFFSET on. It is written like a seqlock: the generation is 0
while the payload is written and a new number afterwards, so that a reader who finds the number it was told, before and
after it copied, has copied that payload. The owner holds an exclusive flock on its file for life.
"""

import fcntl
import os
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from selector_proto.copying import copiers

MAGIC, LAYOUT = b"selector", 1
# Page-aligned on every page size in use.
PAYLOAD_OFFSET = 1 << 16
TOKEN_FILE = "token"  # noqa: S105 - a name, no secret
MAX_TOKEN = 64
# Bytes that one thread copies at once: enough for a second thread to be worth its while, and below the 2 GiB that a
# system call takes.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 4 << 20, 1 << 30

_HEADER = struct.Struct("<8sQQQ")
HEADER_BYTES = _HEADER.size
_NAME = re.compile(r"selector-[0-9a-f]{32}\.payload")


class HeaderError(ValueError):
    """What lies at the beginning of a file is no header."""


@dataclass(frozen=True)
class Header:
    """`generation` is 0 while the payload is being written."""

    generation: int
    payload_bytes: int

    def encode(self) -> bytes:
        return _HEADER.pack(MAGIC, LAYOUT, self.generation, self.payload_bytes)

    @staticmethod
    def decode(data: bytes) -> "Header":
        """Raises HeaderError unless `data` is exactly one header of this layout."""
        if len(data) != HEADER_BYTES:
            raise HeaderError(f"{len(data)} bytes; must be {HEADER_BYTES}")
        magic, layout, generation, payload_bytes = _HEADER.unpack(data)
        if magic != MAGIC or layout != LAYOUT:
            raise HeaderError(f"begins with {magic!r}, layout {layout}; must be {MAGIC!r}, layout {LAYOUT}")
        return Header(generation, payload_bytes)


def new_name() -> str:
    """A name that nobody can guess."""
    return f"selector-{os.urandom(16).hex()}.payload"


def is_name(name: str) -> bool:
    """Whether `name` is one of `new_name`'s form: no path, no other file."""
    return _NAME.fullmatch(name) is not None


def open_within(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """Opens a file of the folder (a descriptor); never through a link, and never waiting for a FIFO's other end."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)


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
    """Writes byte views back to back from `offset` on. Raises OSError; never a signal, as a mapping would."""
    pieces = list(_pieces(parts, offset))
    run = threads.map if len(pieces) > 1 else map
    for _ in run(lambda piece: write(file, *piece), pieces):
        pass


def _pieces(parts: Sequence[memoryview], offset: int) -> Iterator[tuple[memoryview, int]]:
    """Views of `parts`, and where they go."""
    size = _piece_bytes(sum(map(len, parts)))
    for part in parts:
        for start in range(0, len(part), size):
            piece = part[start : start + size]
            yield piece, offset
            offset += len(piece)


def _piece_bytes(total: int) -> int:
    """One piece a thread: a copy of tens of megabytes is written past the caches, which is almost twice as fast as the
    same in pieces that would fit them."""
    return min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, -(-total // copiers())))


def write(file: int, piece: memoryview, offset: int) -> None:
    """Writes one byte view at `offset`. Raises OSError."""
    done = 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], offset + done)


def read_all(file: int, room: memoryview, offset: int, threads: Executor) -> bool:
    """Fills `room` from `offset` on; False if the file ends before."""
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


def sweep(folder: int) -> int:
    """Removes the payload files whose owners are dead; returns how many. Files that cannot be opened stay."""
    swept = 0
    for name in filter(is_name, os.listdir(folder)):
        try:
            file = open_within(folder, name)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder)
            swept += 1
        except OSError:
            continue  # its owner lives, or another process was faster
        finally:
            os.close(file)
    return swept


def read_token(folder: int) -> str:
    """What the folder's token file says. Raises OSError."""
    file = open_within(folder, TOKEN_FILE)
    try:
        return os.read(file, MAX_TOKEN + 1).decode(errors="replace")
    finally:
        os.close(file)
