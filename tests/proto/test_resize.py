"""The resizing matrices, against torch and against what FlexiViT promises of them."""

from math import prod
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_proto.resize import Interpolation, patch_matrix, resize_matrix

MODES = [(interpolation, antialias) for interpolation in get_args(Interpolation) for antialias in (False, True)]
SIZES = [
    ((4, 4), (8, 8)),
    ((8, 8), (4, 4)),
    ((7, 5), (3, 11)),
    ((3, 11), (7, 5)),
    ((32, 32), (16, 16)),
    ((9, 16), (10, 15)),
    ((1, 6), (4, 1)),
    ((2, 1), (1, 1)),
    ((14, 14), (5, 5)),
]
sides = st.tuples(st.integers(1, 20), st.integers(1, 20))
any_mode = st.sampled_from(MODES)


def by_torch(image, to, interpolation, antialias):
    if antialias and to[1] == 1 < to[0]:  # torch 2.13 on a CPU repeats the first row of a result one pixel wide
        return by_torch(image.T.copy(), to[::-1], interpolation, antialias).T
    batch = torch.from_numpy(image)[None, None]
    options = {"mode": interpolation, "align_corners": False, "antialias": antialias}
    return torch.nn.functional.interpolate(batch, to, **options)[0, 0].numpy()


def picture(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "to"), SIZES)
def test_resizes_as_torch_does(size, to, mode):
    image = picture(size)
    resized = (resize_matrix(size, to, *mode) @ image.ravel()).reshape(to)
    np.testing.assert_allclose(resized, by_torch(image, to, *mode), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(size=sides, to=sides, mode=any_mode)
def test_resizes_any_size_as_torch_does_and_keeps_a_plain_area(size, to, mode):
    matrix, image = resize_matrix(size, to, *mode), picture(size)
    np.testing.assert_allclose((matrix @ image.ravel()).reshape(to), by_torch(image, to, *mode), atol=1e-11)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "to"), [((4, 4), (8, 8)), ((3, 5), (7, 6)), ((6, 6), (6, 9)), ((2, 2), (13, 3))])
def test_sizing_up_keeps_every_product(size, to, mode):
    kernel, patches = picture(size).ravel(), picture((50, prod(size)), seed=1)
    products = (patches @ resize_matrix(size, to, *mode).T) @ (patch_matrix(size, to, *mode) @ kernel)
    np.testing.assert_allclose(products, patches @ kernel, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(size=sides, to=sides, mode=any_mode)
def test_a_patch_matrix_is_the_pseudo_inverse_of_the_transpose(size, to, mode):
    resize, patch = resize_matrix(size, to, *mode), patch_matrix(size, to, *mode)
    assert patch.shape == resize.shape
    # The four conditions of Moore and Penrose, for a matrix of moderate entries.
    scale = np.abs(patch).max() ** 2 * patch.size
    for found, expected in [
        (resize.T @ patch @ resize.T, resize.T),
        (patch @ resize.T @ patch, patch),
        ((resize.T @ patch).T, resize.T @ patch),
        ((patch @ resize.T).T, patch @ resize.T),
    ]:
        np.testing.assert_allclose(found, expected, atol=1e-13 * scale + 1e-12)


def test_sizing_down_is_least_squares():
    mode = ("bilinear", True)
    resize, kernel = resize_matrix((8, 8), (4, 4), *mode), picture((8, 8)).ravel()
    best = np.linalg.lstsq(resize.T, kernel, rcond=None)[0]
    np.testing.assert_allclose(patch_matrix((8, 8), (4, 4), *mode) @ kernel, best, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("matrix", [resize_matrix, patch_matrix])
def test_to_the_same_size_changes_nothing(matrix, mode):
    np.testing.assert_allclose(matrix((5, 3), (5, 3), *mode), np.eye(15), atol=1e-12)


@pytest.mark.parametrize("matrix", [resize_matrix, patch_matrix])
def test_is_computed_once_and_cannot_be_changed(matrix):
    first = matrix((4, 4), (8, 8), "bicubic", True)
    assert first is matrix((4, 4), (8, 8), "bicubic", True)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1.0


@pytest.mark.parametrize("matrix", [resize_matrix, patch_matrix])
@pytest.mark.parametrize(
    ("size", "to", "interpolation", "complaint"),
    [
        ((0, 4), (4, 4), "bilinear", "a side is 0; the limits are 1 and 1024"),
        ((4, 4), (4, -1), "bilinear", "a side is -1; the limits are 1 and 1024"),
        ((4, 4), (1025, 4), "bicubic", "a side is 1025; the limits are 1 and 1024"),
        ((4, 4), (8, 8), "nearest", "interpolation is 'nearest'"),
    ],
)
def test_bad_input_is_named_with_its_limit(matrix, size, to, interpolation, complaint):
    with pytest.raises(ValueError, match=complaint):
        matrix(size, to, interpolation, False)


def test_too_large_matrices_are_refused():
    with pytest.raises(ValueError, match="67108864 entries; the limit is 16777216"):
        resize_matrix((1024, 1024), (8, 8), "bilinear", True)
    for size, to in [((65, 64), (2, 2)), ((2, 2), (65, 64))]:
        with pytest.raises(ValueError, match="4160 pixels; the limit is 4096"):
            patch_matrix(size, to, "bilinear", True)
