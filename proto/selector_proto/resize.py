"""Pictures and patch kernels resized by constant matrices, for models that see pictures at several resolutions.

After FlexiViT (Beyer et al., 2023, section 3.4). Trainer and sidecar must resize one kernel alike, so both take the
matrix from here: as a constant it can stand inside a model, and gradients reach the one stored kernel.
"""

from functools import lru_cache
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["bilinear", "bicubic"]
Matrix = NDArray[np.float64]

MAX_SIDE = 1024
MAX_ENTRIES = 2**24  # of a matrix: 128 MiB
MAX_PATCH = 4096  # pixels


@lru_cache(maxsize=16)
def resize_matrix(size: tuple[int, int], to: tuple[int, int], interpolation: Interpolation, antialias: bool) -> Matrix:
    """R, float64 [to_h * to_w, h * w], read-only: R @ image.ravel() is the image of `size` (h, w) resized.

    As torch.nn.functional.interpolate(image, to, mode=interpolation, align_corners=False, antialias=antialias).
    Raises ValueError where a side, the matrix or the interpolation is out of bounds.
    """
    _check(size, to, interpolation)
    if prod(size) * prod(to) > MAX_ENTRIES:
        raise ValueError(f"size {size} to {to} takes {prod(size) * prod(to)} entries; the limit is {MAX_ENTRIES}")
    rows, columns = (_line(*sides, interpolation, antialias) for sides in zip(size, to, strict=True))
    return _product(rows, columns)


@lru_cache(maxsize=16)
def patch_matrix(size: tuple[int, int], to: tuple[int, int], interpolation: Interpolation, antialias: bool) -> Matrix:
    """P, float64 [to_h * to_w, h * w], read-only: P @ kernel.ravel() is the patch kernel of `size` resized.

    FlexiViT's w' = (B^T)^+ w, per input channel and output feature, where B = resize_matrix(size, to, ...). For
    patches sized up it is exact: <x, w> = <B x, w'> for every x. For patches sized down it is the least-squares
    solution. Raises ValueError as resize_matrix, and where a patch has too many pixels.
    """
    _check(size, to, interpolation)
    for pixels in (prod(size), prod(to)):
        if pixels > MAX_PATCH:
            raise ValueError(f"a patch has {pixels} pixels; the limit is {MAX_PATCH}")
    # The pseudo-inverse of a Kronecker product is that of its factors, which are far smaller.
    rows, columns = (_line(*sides, interpolation, antialias) for sides in zip(size, to, strict=True))
    return _product(_inverse(rows.T), _inverse(columns.T))


def _inverse(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.pinv(matrix), np.float64)


def _check(size: tuple[int, int], to: tuple[int, int], interpolation: str) -> None:
    for side in (*size, *to):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"a side is {side}; the limits are 1 and {MAX_SIDE}")
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {get_args(Interpolation)}")


def _line(size: int, to: int, interpolation: Interpolation, antialias: bool) -> Matrix:
    """The matrix, float64 [to, size], that resizes one line of `size` pixels to `to` pixels."""
    scale = size / to
    centres = (np.arange(to) + 0.5) * scale - 0.5
    if antialias:
        # The filter widens with the scale; what falls off the border is cut, and the rest weighs more.
        weights = _filter((np.arange(size) - centres[:, None]) / max(scale, 1.0), interpolation, -0.5)
        total: Matrix = weights.sum(axis=1, keepdims=True)
        return weights / total
    # There are four neighbours, or bilinearly two; one that falls off the border is taken to be the pixel on it.
    neighbours = np.floor(centres)[:, None] + np.arange(-1, 3)
    line = np.zeros((to, size))
    at = np.clip(neighbours, 0, size - 1).astype(np.intp)
    np.add.at(line, (np.arange(to)[:, None], at), _filter(neighbours - centres[:, None], interpolation, -0.75))
    return line


def _filter(distance: Matrix, interpolation: Interpolation, a: float) -> Matrix:
    """The weight of a pixel at this distance: a triangle, or the cubic convolution kernel (Keys, 1981) of slope `a`."""
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    near: Matrix = ((a + 2) * x - (a + 3)) * x**2 + 1
    far: Matrix = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _product(rows: Matrix, columns: Matrix) -> Matrix:
    """The Kronecker product, read-only: it resizes lines of both directions, one after the other."""
    matrix = np.asarray(np.kron(rows, columns), np.float64)
    matrix.setflags(write=False)
    return matrix
