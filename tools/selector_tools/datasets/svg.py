"""Draws SVG icons in ink on 32x32 paper, with as many processes as there are processors."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import resvg_py
from PIL import Image

from selector_tools.datasets.dataset import Rows
from selector_tools.datasets.raster import FAINTEST, SIDE, Ink, in_shades

Tag = TypeVar("Tag")
Drawn = tuple[Rows, Ink]


def draw(batches: Iterable[tuple[Tag, Sequence[str]]]) -> Iterator[tuple[Tag, Rows, Ink]]:
    """Yields for each batch of SVG texts its tag, the rows that show something, and their ink, uint8 [rows, 32, 32].

    Fresh processes draw, so a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[Tag, Future[Drawn]]] = deque()
    with ProcessPoolExecutor(
        workers, get_context("spawn")
    ) as processes:  # a fork would copy the caller's threads' locks
        for tag, texts in batches:
            waiting.append((tag, processes.submit(drawn, texts)))
            if len(waiting) > 2 * workers:  # which bounds the memory for texts
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())


def drawn(texts: Sequence[str]) -> Drawn:
    """Returns the rows of the SVG texts that show something, int [rows], and their ink, uint8 [rows, 32, 32]."""
    ink = np.stack([_ink(text) for text in texts])
    rows = np.flatnonzero(ink.std(axis=(1, 2)) >= FAINTEST)
    return rows, ink[rows]


def _ink(text: str) -> Ink:
    """Returns uint8 [32, 32] in 16 shades, blank where the text is no SVG. Colours count by how dark they are."""
    try:
        png = resvg_py.svg_to_bytes(svg_string=text, background="#ffffff", skip_system_fonts=True)
    except ValueError:
        return np.zeros((SIDE, SIDE), np.uint8)
    return in_shades(255 - np.asarray(Image.open(io.BytesIO(png)).convert("L"), np.uint8))


def _done(tag: Tag, future: Future[Drawn]) -> tuple[Tag, Rows, Ink]:
    return tag, *future.result()
