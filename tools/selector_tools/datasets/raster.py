"""Draws a font's glyphs in ink on 32x32 paper, and tells which pictures are nearly the same."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 32  # pixels
TYPICAL_INK = 29  # pixels, under which the longer side of nine glyphs in ten of a font stays
TRIAL_SIZE = 28  # pixels per em
NOT_DEFINED = chr(0x10FFFD)  # no font has it, so what is drawn for it is the font's box for missing glyphs
FAINTEST = 8  # a picture whose ink has a lower standard deviation counts as blank
BLOCK = 1024  # rows are compared at a time, which bounds memory to BLOCK x n similarities

Ink = NDArray[np.uint8]


class _Pen:
    """Draws single glyphs of one font at one size (pixels per em)."""

    def __init__(self, font: Path, size: int):
        self._font = ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
        self._page = 4 * size  # pixels, with room for glyphs that are larger or farther off than they should be

    def draw(self, char: str) -> Image.Image | None:
        """Returns the glyph cut to its ink (mode L, 255 is full ink), or None where there is no ink."""
        page = Image.new("L", (self._page, self._page))
        ImageDraw.Draw(page).text((self._page / 2, self._page / 2), char, 255, self._font, anchor="mm")
        box = page.getbbox()
        return page.crop(box) if box else None


def _fitting_pen(font: Path, chars: Sequence[str]) -> _Pen:
    """Returns a pen whose size gives icons of every font about the same extent, whatever its em square holds."""
    trial = _Pen(font, TRIAL_SIZE)
    extents = [max(glyph.size) for char in chars if (glyph := trial.draw(char))]
    return _Pen(font, round(TRIAL_SIZE * TYPICAL_INK / float(np.percentile(extents, 90))))


def in_shades(ink: Ink) -> Ink:
    """Returns ink of any shape in the nearest of 16 shades, which are multiples of 17."""
    return ((ink.astype(np.uint16) + 8) // 17 * 17).astype(np.uint8)


def _on_paper(glyph: Image.Image) -> Ink:
    """Returns uint8 [32, 32]: the glyph centred, shrunk if it does not fit, in 16 shades (multiples of 17)."""
    if max(glyph.size) > SIDE:
        shrink = SIDE / max(glyph.size)
        width, height = (max(1, round(side * shrink)) for side in glyph.size)
        glyph = glyph.resize((width, height), Image.Resampling.BOX)
    paper = Image.new("L", (SIDE, SIDE))
    paper.paste(glyph, ((SIDE - glyph.width) // 2, (SIDE - glyph.height) // 2))
    return in_shades(np.asarray(paper, np.uint8))


def render(font: Path, chars: Sequence[str]) -> Iterator[tuple[int, Ink]]:
    """Yields the index into `chars` and the ink, uint8 [32, 32], of every character the font really draws."""
    pen = _fitting_pen(font, chars)
    missing = pen.draw(NOT_DEFINED)
    blank = _on_paper(missing).tobytes() if missing else b""
    for index, char in enumerate(chars):
        if glyph := pen.draw(char):
            ink = _on_paper(glyph)
            if ink.tobytes() != blank and ink.std() >= FAINTEST:
                yield index, ink


class _Shapes:
    """Pictures at 16x16, with cosine similarities that come out the same on every machine.

    Entries are sums of four 4-bit shades, so dot products are whole numbers below 2**24: exact in float32, in
    whatever order a matrix library adds them up.
    """

    def __init__(self, pixels: Ink):
        quarters = (pixels // 17).reshape(-1, SIDE // 2, 2, SIDE // 2, 2).sum(axis=(2, 4))
        self._ink = quarters.reshape(len(pixels), (SIDE // 2) ** 2).astype(np.float32)
        self._length = np.sqrt(np.square(self._ink).sum(axis=1))

    def blocks(self, others: "_Shapes") -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields a first row and the cosines of rows from there with `others`, float32 [up to BLOCK, len(others)]."""
        for start in range(0, len(self._ink), BLOCK):
            rows = slice(start, start + BLOCK)
            cosine = self._ink[rows] @ others._ink.T
            cosine /= self._length[rows, None]
            cosine /= others._length
            yield start, cosine


def resembles(pixels: Ink, others: Ink, above: float) -> NDArray[np.bool_]:
    """Returns bool [n]: which of `pixels`, uint8 [n, 32, 32], have a cosine > `above` with any of `others`."""
    found = np.zeros(len(pixels), bool)
    for start, cosine in _Shapes(pixels).blocks(_Shapes(others)):
        found[start : start + len(cosine)] = (cosine > above).any(axis=1)
    return found


def distinct(pixels: Ink, kinds: Sequence[str], same: float, other: float) -> NDArray[np.intp]:
    """Returns the rows of `pixels`, uint8 [n, 32, 32], that copy no earlier row and nearly repeat no kept one.

    The rows ascend. Two pictures repeat each other where their cosine is > `same` if they are of one kind, else where
    it is > `other`.
    """
    first: dict[bytes, int] = {}  # exact copies are many, and are found without comparing all with all
    for row, picture in enumerate(pixels):
        first.setdefault(picture.tobytes(), row)
    rows = np.fromiter(first.values(), np.intp)
    kind = np.unique(np.asarray(kinds)[rows], return_inverse=True)[1]
    shapes = _Shapes(pixels[rows])
    keep = np.ones(len(rows), bool)
    for start, cosine in shapes.blocks(shapes):
        own, earlier = np.nonzero(cosine > min(same, other))
        limit = np.where(kind[own + start] == kind[earlier], same, other)
        repeats = (earlier < own + start) & (cosine[own, earlier] > limit)
        for row, source in zip(own[repeats] + start, earlier[repeats], strict=True):
            if keep[source]:
                keep[row] = False
    return rows[keep]
