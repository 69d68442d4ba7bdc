"""Reads from a file's own headers what decoding it would allocate, where Pillow allocates before it tells, or where a
container says another size than the picture inside it has."""

import struct
from collections.abc import Iterator

_MOST_TIFF_PARTS = 1 << 16  # Pillow makes an object for each strip and each tile


class Unserved(Exception):
    """The file is of a kind that is not decoded here; the message says which."""


def gif_pixels(file: bytes) -> int:
    """Returns the most pixels that Pillow allocates to open a GIF and to decode its first frame: those of the screen,
    which the frame may extend. Raises ValueError or IndexError if there is no frame."""
    width, height, flags = struct.unpack_from("<HHB", file, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while (kind := file[at]) != 0x2C:
        if kind == 0x21:  # an extension: its label, then blocks up to an empty one
            at += 2
            while size := file[at]:
                at += 1 + size
        elif kind == 0x3B:
            raise ValueError("there is no frame in it")
        at += 1
    left, top, wide, high = struct.unpack_from("<4H", file, at + 1)
    return int(max(width, left + wide) * max(height, top + high))


def tiff_pixels(file: bytes) -> int:
    """Returns the pixels of a TIFF's largest tile, 0 if it has none. Raises Unserved for kinds of compression that are
    seldom used or cost much memory, and ValueError or struct.error for directories that promise more than the file
    holds."""
    order = "<" if file[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", file, 2)[0] == 43
    start = struct.unpack_from(f"{order}Q" if big else f"{order}I", file, 8 if big else 4)[0]
    tags = _directory(file, start, order, big)
    for pointer in (34665, 34853, 40965):  # Exif, GPS and interoperability, which Pillow reads too
        if pointer in tags:
            _directory(file, tags[pointer][1], order, big)
    if any(tags.get(tag, (0, 0))[0] > _MOST_TIFF_PARTS for tag in (273, 324)):
        raise ValueError(f"it has more than {_MOST_TIFF_PARTS} strips or tiles")
    compression = tags.get(259, (1, 1))[1]
    if compression not in _TIFF_COMPRESSIONS:
        raise Unserved(f"a TIFF of compression {compression}; served are {', '.join(_TIFF_COMPRESSIONS.values())}")
    return tags.get(322, (0, 0))[1] * tags.get(323, (0, 0))[1]


_TIFF_COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "fax 3",
    4: "fax 4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "old deflate",
}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def _directory(file: bytes, start: int, order: str, big: bool) -> dict[int, tuple[int, int]]:
    """Returns the count and the first value of each tag, the value only where it stands in the directory itself."""
    number, entry, inside = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    (entries,) = struct.unpack_from(order + number, file, start)
    start += struct.calcsize(order + number)
    tags: dict[int, tuple[int, int]] = {}
    total = 0
    for index in range(entries):
        tag, kind, count, data = struct.unpack_from(order + entry, file, start + index * struct.calcsize(order + entry))
        size = count * _TIFF_SIZES.get(kind, 0)
        total += size if size > inside else 0
        if total > len(file):
            raise ValueError("its tags hold more than the file does")
        form = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(kind)
        # As in Pillow, the first of several tags of one number counts.
        tags.setdefault(tag, (count, struct.unpack_from(order + form, data)[0] if form else 0))
    return tags


def avif_pixels(file: bytes) -> int:
    """Returns the most pixels of any picture inside an AVIF file. The decoder allocates what a picture's own AV1 header
    says, whatever size the container says, and scales afterwards. Raises Unserved for animations, and ValueError,
    IndexError or struct.error for what cannot be followed."""
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
