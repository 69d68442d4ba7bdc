"""Synthetic pairs: a pattern of 8 x 8 blocks in a colour, and its name. Half of the captions belong to other pictures.
This needs numpy only."""

from collections.abc import Iterator
from typing import Any

import numpy as np

SIDE = 32
COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan", "grey", "white")
PATTERNS = ("dots", "stripes", "cross", "ring", "steps", "star", "waves", "bricks")
# Token id 0 pads; the ids of colours follow, then those of patterns, then that of the end.
END = 1 + len(COLOURS) + len(PATTERNS)
VOCABULARY, MAX_TOKENS = END + 1, 4

_RNG = np.random.default_rng(0)
_RGB = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [3, 3, 0], [3, 0, 2], [0, 3, 3], [1, 1, 1], [3, 3, 3]]) / 3
_MASKS = (_RNG.random((len(PATTERNS), SIDE // 4, SIDE // 4)) < 0.5).repeat(4, axis=1).repeat(4, axis=2)


def pairs(count: int, rng: np.random.Generator, mislabelled: float = 0.5) -> dict[str, Any]:
    """Returns `images` uint8 [count, 32, 32, 3], `texts` int64 [count, 4], `captions` (strings), and which pairs are
    `mislabelled` (bool [count])."""
    colours, patterns = rng.integers(len(COLOURS), size=count), rng.integers(len(PATTERNS), size=count)
    clean = _MASKS[patterns][..., None] * _RGB[colours][:, None, None]
    images = (255 * np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1)).astype(np.uint8)
    wrong = rng.random(count) < mislabelled
    colours = np.where(wrong, rng.integers(len(COLOURS), size=count), colours)
    patterns = np.where(wrong, rng.integers(len(PATTERNS), size=count), patterns)
    texts = np.zeros((count, MAX_TOKENS), np.int64)
    texts[:, 0], texts[:, 1], texts[:, 2] = 1 + colours, 1 + len(COLOURS) + patterns, END
    captions = [f"{COLOURS[c]} {PATTERNS[p]}" for c, p in zip(colours, patterns, strict=True)]
    return {"images": images, "texts": texts, "captions": captions, "mislabelled": wrong}


def super_batches(steps: int, size: int = 320, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yields one super-batch of `size` pairs for each step."""
    rng = np.random.default_rng(seed)
    return (pairs(size, rng) for _ in range(steps))


def smaller(images: np.ndarray[Any, Any], factor: int = 2) -> np.ndarray[Any, Any]:
    """Returns images, uint8 [B, H, W, 3], at a `factor`-th of their side, as the means of blocks."""
    count, high, wide, channels = images.shape
    blocks = images.reshape(count, high // factor, factor, wide // factor, factor, channels)
    means: np.ndarray[Any, Any] = blocks.mean(axis=(2, 4)).round()
    return means.astype(np.uint8)
