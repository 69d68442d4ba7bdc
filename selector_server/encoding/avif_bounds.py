"""Reads from an AVIF file the sizes of the pictures inside it (ISO/IEC 14496-12 boxes, and the AV1 specification). The
decoder allocates what a picture's own AV1 header says, whatever size the container says, and scales it afterwards."""

import struct
from collections.abc import Iterator

from selector_server.encoding.image_bounds import Unserved


def avif_pixels(file: bytes) -> int:
    """Returns the most pixels of any picture inside an AVIF file. Raises Unserved for animations, and ValueError,
    IndexError, KeyError or struct.error for what cannot be followed."""
    boxes = dict(reversed(list(_boxes(file, 0, len(file)))))  # the first of each kind
    if b"moov" in boxes:
        raise Unserved("an animated AVIF")
    if b"meta" not in boxes:
        raise ValueError("it has no meta box")
    start, end = boxes[b"meta"]
    inner = dict(reversed(list(_boxes(file, start + 4, end))))
    most = 0
    for item in _items(file, inner):
        for width, height in _av1_sizes(item):
            most = max(most, width * height)
    return most


def _boxes(file: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yields kind, and start and end of the content, of each box of an ISO base media file."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", file, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", file, at + 8)
            head = 16
        stop = end if size == 0 else at + size
        if not at + head <= stop <= end:
            raise ValueError(f"box {kind!r} is longer than what holds it")
        yield kind, (at + head, stop)
        at = stop


def _items(file: bytes, meta: dict[bytes, tuple[int, int]]) -> Iterator[bytes]:
    """Yields the content of every AV1 item that a meta box locates."""
    kinds = _item_kinds(file, *meta[b"iinf"])
    at, end = meta[b"iloc"]
    version, sizes = file[at], struct.unpack_from(">H", file, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > end:
            raise ValueError("its iloc box ends early")
        at += size
        return int.from_bytes(file[at - size : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        inside = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base, parts = number(base_size), []
        for _ in range(number(2)):
            number(index_size)
            where, length = base + number(offset_size), number(length_size)
            if inside == 1:
                where += meta[b"idat"][0]
            parts.append(file[where : where + length if length else len(file)])
            if sum(map(len, parts)) > len(file):
                raise ValueError("an item is longer than the file")
        if kinds.get(item) == b"av01":
            yield b"".join(parts)


def _item_kinds(file: bytes, at: int, end: int) -> dict[int, bytes]:
    """Returns the kind of each item by its number."""
    kinds = {}
    for kind, (start, _) in _boxes(file, at + (6 if file[at] == 0 else 8), end):
        if kind == b"infe":
            wide = file[start] == 3
            (item,) = struct.unpack_from(">I" if wide else ">H", file, start + 4)
            after = start + (10 if wide else 8)
            kinds[item] = file[after : after + 4]
    return kinds


def _av1_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the largest width and height that each sequence header allows (AV1 specification, 5.3 and 5.5)."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size = 0
            for shift in range(0, 56, 7):
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
        if head >> 3 & 15 == 1:
            yield _sequence_size(_Bits(data[at : at + size]))
        at += size


class _Bits:
    """Reads numbers of any count of bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data[:1024], "big"), 8 * len(data[:1024])

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("its AV1 header ends early")
        return self._value >> self._left & (1 << count) - 1


def _sequence_size(bits: _Bits) -> tuple[int, int]:
    take = bits.take
    take(4)
    reduced = take(1)
    if reduced:
        take(5)
    else:
        delay = _timing(bits)
        initial = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay and take(1):
                take(2 * delay + 1)
            if initial and take(1):
                take(4)
    sizes = take(4) + 1, take(4) + 1
    width, height = (take(size) + 1 for size in sizes)
    if not reduced and any((most - 1).bit_length() < size for most, size in zip((width, height), sizes, strict=True)):
        # A frame may say another size in so many bits. With no more bits than needed, that is less than twice as much.
        return 1 << sizes[0], 1 << sizes[1]
    return width, height


def _timing(bits: _Bits) -> int:
    """Reads timing and decoder model; returns the bits of a buffer's delay, 0 without a decoder model."""
    take = bits.take
    if not take(1):
        return 0
    take(64)
    if take(1):  # a number whose length is that of the zeros before it
        zeros = 0
        while not take(1):
            zeros += 1
        take(zeros if zeros < 32 else 0)
    if not take(1):
        return 0
    delay = take(5) + 1
    take(42)
    return delay
