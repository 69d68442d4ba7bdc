"""Payloads in files that two processes of one host see: how they are named, what their header says, and which of them
dead owners left.

A file is a header, then the payload from byte PAYLOAD_OFFSET on. It is written like a seqlock: the generation is 0
while the payload is written and a new number afterwards, so that a reader who finds the number it was told, before and
after it copied, has copied that payload. The owner holds an exclusive flock on its file for life.
"""

import os
import re
import struct
from dataclasses import dataclass

from selector_proto.files import try_lock

MAGIC, LAYOUT = b"selector", 1
# Page-aligned on every page size in use.
PAYLOAD_OFFSET = 1 << 16
TOKEN_FILE = "token"  # noqa: S105 - a name, no secret
MAX_TOKEN = 64

_HEADER = struct.Struct("<8sQQQ")
HEADER_BYTES = _HEADER.size
_NAME = re.compile(r"selector-[0-9a-f]{32}\.payload")


class HeaderError(ValueError):
    """What lies at the beginning of a file is no header."""


@dataclass(frozen=True)
class Header:
    """The `generation` is 0 while the payload is being written."""

    generation: int
    payload_bytes: int

    def encode(self) -> bytes:
        """The HEADER_BYTES bytes at the beginning of the file."""
        return _HEADER.pack(MAGIC, LAYOUT, self.generation, self.payload_bytes)

    @staticmethod
    def decode(data: bytes) -> "Header":
        """What `encode` wrote. Raises HeaderError unless `data` is exactly one header of this layout."""
        if len(data) != HEADER_BYTES:
            raise HeaderError(f"{len(data)} bytes; must be {HEADER_BYTES}")
        magic, layout, generation, payload_bytes = _HEADER.unpack(data)
        if magic != MAGIC or layout != LAYOUT:
            raise HeaderError(f"begins with {magic!r}, layout {layout}; must be {MAGIC!r}, layout {LAYOUT}")
        return Header(generation, payload_bytes)


def new_name() -> str:
    """A name for a new payload file, which nobody can guess."""
    return f"selector-{os.urandom(16).hex()}.payload"


def is_name(name: str) -> bool:
    """Whether `name` has the form of `new_name`'s, and so is neither a path nor another file."""
    return _NAME.fullmatch(name) is not None


def open_within(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """Opens a file of the folder (a descriptor). A link is never followed, and the other end of a FIFO never waited
    for. Raises OSError."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)


def sweep(folder: int) -> int:
    """Removes the payload files whose owners are dead; returns how many. Files that cannot be opened stay."""
    swept = 0
    for name in filter(is_name, os.listdir(folder)):
        try:
            file = open_within(folder, name)
        except OSError:
            continue
        try:
            if try_lock(file):  # else its owner lives
                os.unlink(name, dir_fd=folder)
                swept += 1
        except OSError:
            continue  # another process was faster, or the file is not ours to remove
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
