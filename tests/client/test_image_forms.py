"""Images in the forms in which people have them: what is sent of each, and what is said of those that cannot be."""

import io

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from selector_client.selecting.images import png
from selector_proto.v1 import selector_pb2 as pb
from support.forms import FILES, PIXELS, excluded, files_of, made, pixels_of


def picture(index, mode="RGB"):
    image = Image.fromarray(PIXELS[index])
    return image if mode == "RGB" else image.convert(mode)


def opened(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def test_files_in_their_forms():
    array = np.frombuffer(b"file 3", np.uint8)
    for last in (array, torch.from_numpy(array.copy()), memoryview(array), io.BytesIO(b"file 3")):
        images = [b"file 0", bytearray(b"file 1"), {"bytes": b"file 2", "path": None}, last]
        assert files_of(made(images, strict=True)) == FILES
    for column in (np.array(FILES, object), pandas.Series(FILES), pyarrow.array(FILES), tuple(FILES)):
        assert files_of(made(column, strict=True)) == FILES


def test_pixels_in_their_forms():
    first = torch.from_numpy(np.moveaxis(PIXELS, -1, 1).copy())
    for images in (
        PIXELS,
        torch.from_numpy(PIXELS),
        list(PIXELS),
        first,
        list(first),
        [PIXELS[0], first[1], PIXELS[2], first[3]],
    ):
        assert np.array_equal(pixels_of(made(images, strict=True)), PIXELS)
    assert pixels_of(made(PIXELS[..., 0])).shape == (4, 8, 8, 1)
    assert pixels_of(made(list(PIXELS[..., 0]))).shape == (4, 8, 8, 1)


def test_pil_images_are_pixels_if_they_have_the_models_size_and_png_files_otherwise():
    pictures = [picture(index) for index in range(4)]
    assert np.array_equal(pixels_of(made(pictures, pixels=(8, 8, 3))), PIXELS)
    for size in (None, (16, 16, 3), ()):
        found = files_of(made(pictures, pixels=size))
        assert all(np.array_equal(opened(file), PIXELS[index]) for index, file in enumerate(found))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_modes_of_pil_images(mode):
    """PNG has most of them; Pillow itself converts the others, as it would for a trainer."""
    image = picture(0).convert("I").convert("I;16") if mode == "I;16" else picture(0).convert(mode)
    file = files_of(made([image] * 4))[0]
    kept = Image.open(io.BytesIO(file))
    if mode in ("L", "LA", "RGB", "RGBA", "1"):
        assert np.array_equal(np.asarray(kept), np.asarray(image))
    else:
        assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_our_png_is_read_by_pillow(channels):
    pixels = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), np.uint8)
    assert np.array_equal(opened(png(pixels)).reshape(5, 7, channels), pixels)


def test_arrays_of_different_sizes_travel_as_files():
    images = [PIXELS[0], PIXELS[1, :5], PIXELS[2, ..., 0], np.moveaxis(PIXELS[3], -1, 0)]
    found = [opened(file) for file in files_of(made(images, strict=True))]
    for file, wanted in zip(found, [PIXELS[0], PIXELS[1, :5], PIXELS[2, ..., 0], PIXELS[3]], strict=True):
        assert np.array_equal(file, wanted)


def test_files_and_pictures_side_by_side():
    found = files_of(made([b"file 0", picture(1), PIXELS[2], b"file 3"]))
    assert (found[0], found[3]) == (b"file 0", b"file 3")
    assert np.array_equal(opened(found[1]), PIXELS[1])
    assert np.array_equal(opened(found[2]), PIXELS[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_what_to_tensor_made_is_read_back_exactly(dtype):
    """Webdataset's decode("torch") makes these, and torchvision's ToTensor."""
    floats = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2).double() / 255).to(dtype)
    assert np.array_equal(pixels_of(made(floats)), PIXELS)
    assert np.array_equal(pixels_of(made(list(floats))), PIXELS)


def test_normalised_floats_are_told_what_to_send_instead():
    floats = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    words = "send what they were before they were normalised: uint8 pixels, PIL images, or the files' bytes"
    with pytest.raises(TypeError, match=f"images has dtype float32; must be uint8: {words}"):
        made(floats)
    indices, first = excluded(made([b"file", *floats[:2], floats[3].abs()]))["format"]
    assert indices == [1, 2, 3], "if one is normalised, all are"
    assert first.startswith("images[1] has dtype float32, from -")
    assert first.endswith(words)
    for odd in (torch.rand(4, 3, 8, 8), torch.full((4, 3, 8, 8), float("nan"))):
        with pytest.raises(TypeError, match="images has dtype float32"):
            made(odd)


def test_images_that_cannot_be_used_are_named_with_what_to_do():
    cut = io.BytesIO()
    picture(0).resize((64, 64)).save(cut, "PNG")
    broken = Image.open(io.BytesIO(cut.getvalue()[:-60]))
    one = made([None, b"", "0.jpg", broken], texts=["a"] * 4)
    assert files_of(one) == [b""] * 4
    found = excluded(one)
    assert found["missing"] == ([0, 1], "images[0] is None; every candidate needs an image")
    assert found["format"][1].startswith("images[2] is a str; must be the file's bytes (Path(...).read_bytes())")
    assert found["unreadable"][1].startswith("images[3] cannot be read: ")
    two = excluded(made([{"path": "0.jpg"}, PIXELS[0].astype(np.int64), np.zeros((8, 8, 5), np.uint8), b"file"]))
    assert two["format"][0] == [0, 1, 2]
    assert two["format"][1].startswith("images[0] is a dict; must be a file's bytes")


def test_images_that_are_too_large_for_the_sidecar():
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    found = made([b"x" * 101, b"file", noise, Image.fromarray(noise)], max_image_bytes=100)
    words = "images[0] has 101 bytes; the sidecar takes 100 (max_image_bytes)"
    assert excluded(found) == {"too_large": ([0, 2, 3], words)}
    found = made([b"file", np.zeros((30, 40, 3), np.uint8), Image.new("P", (40, 30)), b"file"], max_image_pixels=1199)
    assert excluded(found) == {
        "too_large": ([1, 2], "images[1] has 30 x 40 pixels; the sidecar takes 1199 (max_image_pixels)")
    }


def test_a_placeholder_has_the_form_of_the_others():
    found = made([PIXELS[0], None, PIXELS[2], PIXELS[3]])
    assert np.array_equal(pixels_of(found)[[0, 2, 3]], PIXELS[[0, 2, 3]])
    assert not pixels_of(found)[1].any()
    (exclusion,) = found.selection(pb.Selection()).exclusions
    assert (exclusion.reason, list(exclusion.indices)) == (1, [1])
