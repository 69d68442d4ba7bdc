"""Buffers to pieces of one size: how payloads travel, over gRPC and into Redis."""

from collections.abc import Iterable, Iterator


def cut(parts: Iterable[memoryview], size: int) -> Iterator[memoryview]:
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
