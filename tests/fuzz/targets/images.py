"""Encoded pictures of a request."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from fuzz.models import learner, reference
from fuzz.mutation import either, raw
from fuzz.target import Decode, Target
from selector_server.encoding.decoder import Decoder
from selector_server.errors import SelectorError

_PNG = b"\x89PNG\r\n\x1a\n"


@contextmanager
def pictures(_: Path) -> Iterator[Decode]:
    with Decoder(1) as decoder:
        models = learner(decoder), reference(decoder)

        def decode(data: bytes) -> str:
            for model in models:
                pixels = model.pixels([data])
                assert pixels.shape == (1, model.image.height, model.image.width, model.image.channels)
            return "JPEG" if data[:2] == b"\xff\xd8" else repr(data[4:12] if data[4:8] == b"ftyp" else data[:4])

        yield decode


def _exif() -> Image.Exif:
    """Has a directory in a directory, and asks for the picture to be turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"comment"
    return exif


@cache
def files() -> list[bytes]:
    """Small pictures in every form that the formats have here."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    alpha = colour.convert("RGBA")
    alpha.putalpha(100)
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value" * 20, zip=True)
    text.add_itxt("key", "value")
    wide = Image.fromarray(rng.integers(0, 1 << 16, (5, 6), np.uint16))
    made: list[tuple[Image.Image, dict[str, object]]] = [
        (colour, {"format": "JPEG"}),
        (colour, {"format": "PNG"}),
        (colour, {"format": "WEBP"}),
        (colour, {"format": "JPEG", "progressive": True, "quality": 30, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        (colour.convert("L"), {"format": "JPEG", "icc_profile": b"\0" * 200}),
        (colour.convert("CMYK"), {"format": "JPEG"}),
        (alpha, {"format": "PNG", "pnginfo": text, "icc_profile": b"\0" * 200}),
        (colour.convert("P"), {"format": "PNG", "transparency": 3}),
        (colour.convert("1"), {"format": "PNG"}),
        (wide, {"format": "PNG"}),
        (colour, {"format": "PNG", "save_all": True, "append_images": [colour.rotate(90)], "duration": 10}),
        (alpha, {"format": "WEBP", "lossless": True, "exif": b"Exif\0\0"}),
        (colour, {"format": "WEBP", "save_all": True, "append_images": [colour.rotate(90)]}),
        (colour, {"format": "AVIF"}),
        (alpha, {"format": "AVIF", "subsampling": "4:4:4", "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        (colour, {"format": "AVIF", "save_all": True, "append_images": [colour.rotate(90)]}),
        (colour, {"format": "GIF", "comment": b"a comment", "disposal": 2, "transparency": 3}),
        (colour, {"format": "GIF", "save_all": True, "append_images": [colour.rotate(90)], "loop": 0}),
        (colour.convert("1"), {"format": "GIF", "interlace": False}),
        (colour, {"format": "BMP"}),
        (alpha, {"format": "BMP"}),
        (colour.convert("P"), {"format": "BMP"}),
        (colour.convert("1"), {"format": "BMP"}),
        *(
            (colour, {"format": "TIFF", "compression": how})
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        (colour.convert("1"), {"format": "TIFF", "compression": "group4"}),
        (colour.convert("P"), {"format": "TIFF", "save_all": True, "append_images": [colour]}),
        (colour.convert("CMYK"), {"format": "TIFF", "strip_size": 64, "exif": _exif()}),
        (colour.convert("F"), {"format": "TIFF"}),
        (alpha, {"format": "TIFF", "compression": "tiff_lzw", "big_tiff": True}),
        (wide, {"format": "TIFF"}),
        (wide, {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        (Image.new("L", (3000, 1)), {"format": "PNG"}),
        (Image.new("L", (2000, 2000)), {"format": "PNG"}),
    ]
    encoded = []
    for image, how in made:
        stream = io.BytesIO()
        image.save(stream, **how)  # type: ignore[arg-type]
        encoded.append(stream.getvalue())
    return [*encoded, _gif_bomb(), _avif_bomb()]


def _gif_bomb() -> bytes:
    """Asks for a place to be prepared that is far larger than its screen."""
    extent = struct.pack("<4HB", 0, 0, 10000, 16000, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"\x21\xf9\x04\x08\0\0\0\0\x2c" + extent + b"\x08\0;"


def _avif_bomb() -> bytes:
    """Says that it is small, and holds a picture of 16 million pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (4096, 4096), (200, 30, 40)).save(stream, "AVIF", speed=10)
    file = bytearray(stream.getvalue())
    at = file.find(b"ispe")
    file[at + 8 : at + 16] = struct.pack(">II", 64, 64)
    return bytes(file)


def _png(random: Random, data: bytes, other: bytes) -> bytes:
    """Changes whole chunks of a PNG file, and makes their checksums right again."""
    if not data.startswith(_PNG):
        return raw()(random, data, other)
    chunks, at = [], len(_PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return raw()(random, data, other)
    where = random.randrange(len(chunks))
    kind, body = chunks[where]
    match random.randrange(6):
        case 0:
            del chunks[where]
        case 1:
            chunks.insert(
                where,
                (random.choice((b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"fdAT", b"fcTL", b"acTL", kind)), body),
            )
        case 2:  # unfolds a thousandfold
            chunks[where] = (
                random.choice((b"IDAT", b"iCCP", b"zTXt", b"iTXt", kind)),
                b"k\0\0" + zlib.compress(bytes(1 << 22)),
            )
        case _:
            chunks[where] = kind, raw()(random, body, other)
    out = bytearray(_PNG)
    for kind, body in chunks:
        out += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return bytes(out)


_WORDS = (
    b"\xff\xc0",
    b"\xff\xc2",
    b"\xff\xda",
    b"\xff\xe1",
    b"\xff\xee",
    b"\xff\xd9",
    b"VP8X",
    b"VP8L",
    b"ANMF",
    b"ALPH",
    b"EXIF",
    b"Exif\0\0MM\0*",
    b"ispe",
    b"iloc",
    b"av01",
    b"av1C",
    b"grid",
    b"\x0a\x0b",
    b"\x21\xf9\x04\x08",
    b"\x2c\0\0\0\0",
    b"MM\0*",
    b"II+\0",
    b"\x11\x01\x04\0",  # the offsets of strips, of tiles, and the tiles' width
    b"\x44\x01\x04\0",
    b"\x42\x01\x04\0",
    b"\x03\x01\x03\0\x01\0\0\0\x07\0",  # JPEG inside of TIFF
)
TARGETS = (
    Target(
        "images",
        "JPEG, PNG, WebP, AVIF, GIF, BMP and TIFF files",
        pictures,
        files,
        either(raw(*_WORDS), _png),
        (SelectorError,),
        share=0.3,
    ),
)
