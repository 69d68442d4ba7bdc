"""Random shift, crop and flip of training images, against a literal resampling in float64."""

import numpy as np
import pytest
import torch
from selector_tools.reference.augmentation import Augmentation


def images(count, height=7, width=9, channels=3):
    return np.random.default_rng(5).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def augmented(how, pixels, seed=0):
    return how(torch.from_numpy(pixels), np.random.default_rng(seed)).numpy()


def literal(how, pixels, seed):
    """One pixel after the other: where it lies in the source, and what the four pixels around that place come to."""
    rng, (count, height, width, _) = np.random.default_rng(seed), pixels.shape
    side = np.sqrt(rng.uniform(how.crop, 1.0, count))
    place = rng.random((count, 2))
    move = rng.integers(-how.shift, how.shift, (count, 2), endpoint=True)
    mirrored = rng.random(count) < 0.5
    out = np.zeros(pixels.shape)
    for n, row, column in np.ndindex(count, height, width):
        at = width - 1 - column if how.flip and mirrored[n] else column
        x = side[n] * (at + 0.5) + place[n, 0] * (1 - side[n]) * width + move[n, 0] - 0.5
        y = side[n] * (row + 0.5) + place[n, 1] * (1 - side[n]) * height + move[n, 1] - 0.5
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        left, top = int(x), int(y)
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        above = pixels[n, top, left] * (1 - x + left) + pixels[n, top, right] * (x - left)
        below = pixels[n, bottom, left] * (1 - x + left) + pixels[n, bottom, right] * (x - left)
        out[n, row, column] = above * (1 - y + top) + below * (y - top)
    return out


@pytest.mark.parametrize(
    "how",
    [Augmentation(2), Augmentation(0, 0.3), Augmentation(flip=True), Augmentation(3, 0.5, True)],
)
def test_it_is_what_its_words_say(how):
    pixels = images(12)
    found = augmented(how, pixels, 3)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, literal(how, pixels, 3), atol=0.51)  # it is rounded to whole values
    assert not np.array_equal(found, pixels)


def test_a_shift_moves_whole_pixels_both_ways_and_repeats_the_edge():
    pixels = np.repeat(images(1, 5, 5), 400, axis=0)
    found = augmented(Augmentation(1), pixels)
    padded = np.pad(pixels[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    expected = {padded[y : y + 5, x : x + 5].tobytes() for y in range(3) for x in range(3)}
    assert {image.tobytes() for image in found} == expected


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    pixels = images(400)
    found = augmented(Augmentation(flip=True), pixels)
    same, mirrored = ((found == each).all(axis=(1, 2, 3)) for each in (pixels, pixels[:, :, ::-1]))
    assert (same | mirrored).all()
    assert 140 < mirrored.sum() < 260


def test_the_seed_decides_and_a_flag_more_keeps_the_others_draws():
    pixels = images(20)
    shifted = augmented(Augmentation(2), pixels, 1)
    np.testing.assert_array_equal(shifted, augmented(Augmentation(2), pixels, 1))
    assert not np.array_equal(shifted, augmented(Augmentation(2), pixels, 2))
    both = augmented(Augmentation(2, flip=True), pixels, 1)
    mirrored = (both == shifted[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((both == shifted).all(axis=(1, 2, 3)) | mirrored).all()
    assert 0 < mirrored.sum() < 20


def test_nothing_is_off():
    assert Augmentation().off
    assert not Augmentation(1).off
    np.testing.assert_array_equal(augmented(Augmentation(), images(3)), images(3))
