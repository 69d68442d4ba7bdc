"""Decodes one image file with Pillow. What it costs is known from its header, and bounded, before it is unfolded."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from selector_server.encoding.avif_bounds import avif_pixels
from selector_server.encoding.image_bounds import Unserved, gif_pixels, tiff_pixels
from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, SelectorError

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow has it from 11.3 on
    AvifImagePlugin = None  # type: ignore[assignment]

# To be raised whenever a file comes out in other pixels than before: the reference cache then finds no embedding of the
# decoding before, except of files that `decoded_alike` knows to come out as they did.
DECODER = 2
# JPEG files of more pixels than these are decoded at a half, a quarter or an eighth of their size. This is no setting,
# so that the pixels of a file, and its embedding, are the same everywhere.
FULL_PIXELS = 32 << 20
# No encoder writes so many scans; each makes the decoder go over all of the picture.
_MOST_SCANS = 100
# What Pillow converts to RGB or grey as it should be. Deep greys are scaled here.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_ROWS = 64
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


@contextmanager
def opened(file: bytes, field: str, most_pixels: int) -> Iterator[ImageFile]:
    """Yields the image of a file whose header alone was read, in the size in which it will be decoded, of at most
    `most_pixels`. `field` is what errors call it. Whatever Pillow raises in the block is InvalidRequest or
    LimitExceeded, each excluding the one candidate."""
    try:
        kind = _kind(file, field)
        pixels = kind.bound(file)
        if pixels > most_pixels:
            raise _too_many(field, f"{pixels} pixels inside of {kind.name}", most_pixels)
        with kind.plugin(io.BytesIO(file)) as image:
            size = f"{image.height} x {image.width} pixels"
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                _reduce(image, file, field, most_pixels)
            if image.width * image.height > most_pixels:
                raise _too_many(field, size, most_pixels)
            _check_colours(image)
            yield image
    except (SelectorError, MemoryError):
        raise
    except Unserved as error:
        raise _bad(file, field, str(error), Exclusion.FORMAT) from error
    except Exception as error:  # what a broken file leads Pillow to is of many types, bare asserts too
        raise _bad(file, field, str(error)[:300] or type(error).__name__, Exclusion.UNREADABLE) from error


def colours(image: ImageFile, mode: str) -> Image.Image:
    """Decodes an opened image to `mode`, "RGB" or "L". Transparency is dropped, so that what shows is the colour that
    lies under it. Grey of 16 bits is scaled to 8."""
    image.load()
    image.info.pop("transparency", None)  # Pillow would try to convert it too
    if image.mode in _DEEP or image.mode == "I":
        return _grey(image).convert(mode)
    return image if image.mode == mode else image.convert(mode)


def decoded_alike(file: bytes) -> bool:
    """Tells whether decoder 1, which every cache of version 0.1.0 was filled with, made the same pixels of this file:
    it could not read these formats, or made white of deep grey, or decoded large JPEG files in their full size."""
    try:
        with opened(file, "file", FULL_PIXELS) as image:
            if image.format not in ("JPEG", "PNG", "WEBP"):
                return False
            reduced = isinstance(image, JpegImagePlugin.JpegImageFile) and image.decoderconfig
            return not reduced and image.mode in _MODES
    except SelectorError:
        return False


@dataclass(frozen=True)
class _Format:
    """A format that is served. `bound` tells pixels that would be allocated before Pillow tells of them, 0 if none."""

    name: str
    begins: Callable[[bytes], bool]
    plugin: Callable[[io.BytesIO], ImageFile]
    bound: Callable[[bytes], int] = lambda _: 0


def _avif(file: io.BytesIO) -> ImageFile:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many files are decoded side by side as it is
    return AvifImagePlugin.AvifImageFile(file)


def _brands(file: bytes) -> list[bytes]:
    """Returns the brands of a file that begins as those of MPEG-4 do; HEIC and AVIF files name themselves so."""
    if file[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(file[:4], "big"), 256)
    return [file[8:12], *(file[at : at + 4] for at in range(16, end - 3, 4))]


# Formats whose decoders call programs, or are seldom tried with broken files, are not among these.
_FORMATS = (
    _Format("JPEG", lambda file: file.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    _Format("PNG", lambda file: file.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    _Format("WebP", lambda file: file[:4] == b"RIFF" and file[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    _Format("AVIF", lambda file: not {b"avif", b"avis"}.isdisjoint(_brands(file)), _avif, avif_pixels),
    _Format("GIF", lambda file: file.startswith((b"GIF87a", b"GIF89a")), GifImagePlugin.GifImageFile, gif_pixels),
    _Format("BMP", lambda file: file.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    _Format(
        "TIFF",
        lambda file: file.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        TiffImagePlugin.TiffImageFile,
        tiff_pixels,
    ),
)
NAMES = f"{', '.join(each.name for each in _FORMATS[:-1])} or {_FORMATS[-1].name}"


def _kind(file: bytes, field: str) -> _Format:
    """Finds the format by the file's first bytes."""
    if not file:
        raise _bad(file, field, "it is empty", Exclusion.MISSING)
    for each in _FORMATS:
        if each.begins(file):
            if each.name == "AVIF" and (AvifImagePlugin is None or not AvifImagePlugin.SUPPORTED):
                raise Unserved(f"this is AVIF, for which Pillow {PIL.__version__} has no decoder; 11.3 and newer do")
            return each
    raise Unserved(f"it begins with {file[:12]!r}")


def _reduce(image: JpegImagePlugin.JpegImageFile, file: bytes, field: str, most_pixels: int) -> None:
    """Lets a large JPEG be decoded at the first scale that has at most FULL_PIXELS."""
    width, height = image.size
    if width * height <= FULL_PIXELS:
        return
    scale = next((each for each in (2, 4) if -(-width // each) * -(-height // each) <= FULL_PIXELS), 8)
    image.draft(None, (width // scale, height // scale))
    assert image.fp is not None
    several = image.fp.read(3)[2] < image.layers  # Pillow stopped before the first scan's header
    if not (several or image.info.get("progressive")):
        return
    # Of a file in several scans the decoder keeps all coefficients, two bytes each, whatever the scale is. They may
    # take as much as those of the largest file that is decoded in full.
    across, down = (max(layer[part] for layer in image.layer) for part in (1, 2))
    share = sum(layer[1] * layer[2] for layer in image.layer) / (across * down)
    if width * height * share > 3 * most_pixels:
        limit = f"at most {int(3 * most_pixels / share)} pixels for one that is progressive, or has several scans"
        raise LimitExceeded(field, f"{height} x {width} pixels", limit).excluding(Exclusion.TOO_LARGE)
    if file.count(b"\xff\xda") > _MOST_SCANS:
        raise ValueError(f"it has more than {_MOST_SCANS} scans")


def _check_colours(image: ImageFile) -> None:
    """Raises Unserved if nobody can say which grey or colour the file's numbers stand for."""
    if image.format == "BMP" and image.info.get("compression") in (1, 2):  # decoded in Python, pixel by pixel
        raise Unserved("a BMP file that is run-length coded")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        limit = "numbers without a known black and white; scale them to 8 or 16 bits, or send pixels"
        raise Unserved(f"{image.format} of 32 bits or signed, mode {image.mode}: {limit}")
    if image.mode not in (*_MODES, *_DEEP, "I"):
        raise Unserved(f"{image.format} of mode {image.mode}; send it as RGB or grey")


def _grey(image: ImageFile) -> Image.Image:
    """Scales grey of 16 or 12 bits to 8, as value / 257 and value / 16.06 do, where Pillow would cut off at 255."""
    deep, white, inverted = np.asarray(image), 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        white = (1 << tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0  # 0 is white then
    grey = np.empty(deep.shape, np.uint8)
    for row in range(0, len(deep), _ROWS):  # a part at a time, because the sums need 32 bits
        part = deep[row : row + _ROWS].astype(np.uint32)
        grey[row : row + _ROWS] = (part * 255 + white // 2) // white
    return Image.fromarray(~grey if inverted else grey)


def _too_many(field: str, size: str, most_pixels: int) -> LimitExceeded:
    return LimitExceeded(field, size, f"at most {most_pixels} pixels").excluding(Exclusion.TOO_LARGE)


def _bad(file: bytes, field: str, reason: str, exclusion: Exclusion) -> InvalidRequest:
    return InvalidRequest(field, f"{len(file)} bytes", f"must be a {NAMES} file: {reason}").excluding(exclusion)
