"""Reads from the headers of GIF and TIFF files what opening and decoding them would allocate, because Pillow allocates
some of it before it tells the size."""

import struct

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
