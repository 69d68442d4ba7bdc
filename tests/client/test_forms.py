"""Samples in the forms in which people have them: what is sent of each, and what is said of those that cannot be."""

import decimal
import io

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.columns import Advertised, Terms
from selector_client.selecting.exclusions import MAX_WORDS, printable
from selector_client.selecting.images import png
from selector_proto.tensors import BYTES, INTEGERS, read, read_bytes
from selector_proto.v1 import selector_pb2 as pb
from support.model import samples

PIXELS, TOKENS = samples(4)
FILES = [b"file 0", b"file 1", b"file 2", b"file 3"]
NEEDS = "every candidate needs a text"


def made(images=FILES, texts=("a", "b", "c", "d"), ids=None, *, strict=False, seed=0, **limits) -> Candidates:
    return Candidates.samples(images, texts, ids, Terms(strict, seed, Advertised(**limits)))


def payload(candidates):
    return memoryview(b"".join(candidates.payload.parts()))


def texts_of(candidates):
    packed = candidates.header.samples.strings
    return [text.decode() for text in read_bytes(packed, payload(candidates), "texts", candidates.size, 1 << 20)]


def tokens_of(candidates):
    return read(candidates.header.samples.tokens, payload(candidates), "tokens", INTEGERS, [None, None]).tolist()


def files_of(candidates):
    packed = candidates.header.samples.encoded_images
    return read_bytes(packed, payload(candidates), "images", candidates.size, 1 << 24)


def pixels_of(candidates):
    return read(candidates.header.samples.pixels, payload(candidates), "pixels", BYTES, [None] * 4)


def ids_of(candidates):
    ids = candidates.header.sample_ids
    if ids.WhichOneof("ids") == "integers":
        return read(ids.integers, payload(candidates), "ids", INTEGERS, [None]).tolist()
    return [one.decode() for one in read_bytes(ids.strings, payload(candidates), "ids", candidates.size, 1 << 20)]


def excluded(candidates):
    return {reason: (one.indices.tolist(), one.first) for reason, one in candidates.exclusions.found().items()}


# Captions


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT, [], [None]])
def test_a_caption_that_is_missing_leaves_its_candidate_out(missing):
    found = made(texts=["a", missing, "c", None])
    assert texts_of(found) == ["a", "", "c", ""]
    assert list(excluded(found)) == ["missing"]
    indices, first = excluded(found)["missing"]
    assert indices == [1, 3]
    assert first.startswith("texts[1] is ")
    assert first.endswith(NEEDS)


def test_captions_that_are_all_missing():
    assert excluded(made(texts=[None] * 4))["missing"][0] == [0, 1, 2, 3]


def test_numbers_among_captions_are_their_digits():
    assert texts_of(made(texts=[3, "b", 2.5, decimal.Decimal("1.10")])) == ["3", "b", "2.5", "1.10"]


def test_captions_that_are_all_numbers_may_be_labels():
    with pytest.raises(ValueError, match=r"texts has shape \[4\]; must be token ids \[B, T\] or strings; if these"):
        made(texts=[3, 1, 4, 1])


@pytest.mark.parametrize(
    "texts",
    [
        ("a", "b", "c", "d"),
        np.array(["a", "b", "c", "d"]),
        np.array(["a", "b", "c", "d"], object),
        np.array([b"a", b"b", b"c", b"d"]),
        np.array(["a", "b", "c", "d"], np.dtypes.StringDType()),
        pandas.Series(["a", "b", "c", "d"], index=[7, 7, 2, 1]),
        pandas.Series(["a", "b", "c", "d"], dtype="category"),
        pyarrow.array(["a", "b", "c", "d"]),
        pyarrow.chunked_array([["a", "b"], ["c", "d"]]),
        [b"a", bytearray(b"b"), "c", np.str_("d")],
    ],
    ids=["tuple", "numpy", "objects", "numpy bytes", "numpy 2", "pandas", "categories", "arrow", "chunks", "mixed"],
)
def test_columns_of_captions(texts):
    assert texts_of(made(texts=texts, strict=True)) == ["a", "b", "c", "d"]


def test_missing_captions_in_tables():
    for texts in (
        pandas.Series(["a", None, "c", float("nan")]),
        pandas.Series(["a", pandas.NA, "c", None], dtype="string"),
        pyarrow.array(["a", None, "c", None]),
        np.array(["a", None, "c", np.nan], object),
    ):
        assert excluded(made(texts=texts))["missing"][0] == [1, 3]


def test_one_of_several_captions_is_drawn_by_seed():
    several = [["a0", "a1", "a2"], "b", ("c0", "c1"), np.array(["d0"])]
    found = {seed: made(texts=several, seed=seed) for seed in range(40)}
    assert texts_of(found[3]) == texts_of(made(texts=several, seed=3))
    for candidates in found.values():
        first, second, third, fourth = texts_of(candidates)
        assert first == f"a{candidates.drawn[0]}"
        assert third == f"c{candidates.drawn[2]}"
        assert (second, fourth, set(candidates.drawn)) == ("b", "d0", {0, 2, 3})
        assert candidates.captions(np.array([3, 2, 1, 0])).tolist() == [0, candidates.drawn[2], 0, candidates.drawn[0]]
    assert {c.drawn[0] for c in found.values()} == {0, 1, 2}
    assert {(c.drawn[0] > 0, c.drawn[2]) for c in found.values()} == {(i, j) for i in (False, True) for j in (0, 1)}
    assert made().captions(np.array([0])) is None


def test_of_several_captions_a_missing_one_is_not_drawn():
    for seed in range(10):
        found = made(texts=[[None, "a1", float("nan")]] * 4, seed=seed)
        assert texts_of(found) == ["a1"] * 4
        assert found.drawn == dict.fromkeys(range(4), 1), "the number is that in the list"


def test_a_drawn_caption_is_part_of_the_id():
    """An id means one image and one text."""
    several = [["a0", "a1", "a2"], "b", ["c0"], "d"]
    for ids in ([10, 11, 12, 13], ["10", "11", "12", "13"]):
        found = made(texts=several, ids=ids)
        assert ids_of(found) == [f"10#{found.drawn[0]}", "11", "12#0", "13"]


def test_bytes_that_are_not_utf8_leave_their_candidate_out():
    found = made(texts=[b"ok", b"caf\xe9", "c", "d"])
    assert texts_of(found) == ["ok", "", "c", "d"]
    assert excluded(found) == {
        "text": ([1], "texts[1] is not UTF-8; decode it yourself, as by .decode('utf-8', 'replace')")
    }


def test_lone_surrogates_leave_their_candidate_out_and_pairs_are_one_character():
    found = made(texts=["bad \udcff", "\ud83d\ude00", "c", "d \ud83d"])
    assert texts_of(found) == ["", "\U0001f600", "c", ""]
    indices, first = excluded(found)["text"]
    assert indices == [0, 3]
    assert first == "texts[0] has half a character (a lone surrogate); read its file with errors='replace'"


def test_byte_order_marks_and_control_characters_are_sent_as_they_are():
    """The tokenizer of the model's bundle cleans texts as the model's own does; another one would see other ids."""
    texts = ["\ufeffa dog", "a\0b", "\x1b[31mred\x1b[0m", "\t\r\n \u2028"]
    assert texts_of(made(texts=texts, strict=True)) == texts


def test_an_empty_caption_is_a_caption():
    assert texts_of(made(texts=["", " ", "c", "d"], strict=True)) == ["", " ", "c", "d"]


def test_a_caption_that_is_too_long_for_the_sidecar():
    found = made(texts=["a" * 11, "é" * 5, "c", "d"], max_text_bytes=10)
    assert texts_of(found) == ["", "ééééé", "c", "d"]
    assert excluded(found) == {"too_large": ([0], "texts[0] has 11 bytes; the sidecar takes 10 (max_text_bytes)")}


def test_a_caption_of_another_kind():
    found = made(texts=["a", {"en": "b"}, "c", object()])
    indices, first = excluded(found)["format"]
    assert (indices, first) == ([1, 3], "texts[1] is a dict; must be a text like the others, or a list of texts")


# Token ids


@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS,
        TOKENS.tolist(),
        torch.from_numpy(TOKENS),
        [torch.from_numpy(row) for row in TOKENS],
        TOKENS[:, None],  # open_clip's tokenizer returns [1, T] for one text
        {"input_ids": torch.from_numpy(TOKENS), "attention_mask": None},
        np.array([*TOKENS.astype(object)]),
    ],
    ids=["array", "lists", "tensor", "tensors", "one by one", "transformers", "objects"],
)
def test_columns_of_token_ids(tokens):
    assert tokens_of(made(texts=tokens, strict=True)) == TOKENS.tolist()


def test_missing_token_ids_leave_their_candidate_out():
    found = made(texts=[TOKENS[0], None, TOKENS[2], float("nan")])
    assert tokens_of(found) == [TOKENS[0].tolist(), [0] * 6, TOKENS[2].tolist(), [0] * 6]
    assert excluded(found) == {"missing": ([1, 3], f"texts[1] is missing; {NEEDS}")}


def test_token_ids_of_different_lengths():
    with pytest.raises(ValueError, match=r"texts\[2\] has shape \[2\], texts\[0\] \[3\]; pad token ids to one length"):
        made(texts=[[1, 2, 3], [4, 5, 6], [7, 8], [1, 2, 3]])


# Ids


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (np.arange(4, dtype=np.uint8), [0, 1, 2, 3]),
        (torch.arange(4), [0, 1, 2, 3]),
        ([np.int64(3), 2, 1, 0], [3, 2, 1, 0]),
        (np.array([3, 2, 1, 0], object), [3, 2, 1, 0]),
        (pandas.Series([5, 6, 7, 8]), [5, 6, 7, 8]),
        (pandas.Series([5, 6, None, 8]), [5, 6, 0, 8]),
        (np.array(["x", "y", "z", "w"], object), ["x", "y", "z", "w"]),
        ([b"x", "y", np.str_("z"), "w"], ["x", "y", "z", "w"]),
        (pyarrow.array(["x", "y", "z", "w"]), ["x", "y", "z", "w"]),
    ],
)
def test_columns_of_ids(ids, wanted):
    assert ids_of(made(ids=ids)) == wanted


def test_ids_that_differ_by_a_trailing_nul_are_different():
    found = made(ids=["a", "a\0", "b", "b\0\0"], strict=True)
    assert ids_of(found) == ["a", "a\0", "b", "b\0\0"]
    assert found.closed() == {}


def test_a_candidate_without_an_id_is_left_out():
    for ids, first in ((["x", None, "", "w"], "ids[1] is None"), ([5, float("nan"), None, 8], "ids[1] is nan")):
        found = made(ids=ids)
        assert excluded(found) == {"missing": ([1, 2], f"{first}; every candidate needs an id, or none has one")}
        assert found.ids == [ids[0], None, None, ids[3]]


def test_an_id_that_is_too_long_or_no_text():
    found = made(ids=["x" * 240, "y" * 241, b"\xff", "\udcff"])
    assert excluded(found) == {
        "too_large": ([1], "ids[1] has 241 bytes; must have 1 to 240, so send a hash of it"),
        "text": ([2, 3], "ids[2] is not Unicode; must be integers or UTF-8"),
    }


def test_ids_that_cannot_be():
    for ids, kind, words in (
        ([1, "1", 2, 3], TypeError, "integers and strings; must be one or the other"),
        ([1, 2, 3, 2**63], ValueError, r"ids has 9223372036854775808; must be below 2\^63"),
        ([1.5, 2, 3, 4], TypeError, r"ids\[0\] is a float; must be integers or strings"),
        ([{}, {}, {}, {}], TypeError, r"ids\[0\] is a dict"),
        (np.ones((4, 2), np.int64), TypeError, "2 dimensions"),
        ([1, 2, 3], ValueError, "ids has 3 entries, images has 4"),
    ):
        with pytest.raises(kind, match=words):
            made(ids=ids)


def test_repeated_ids_are_sent_and_left_out_by_the_sidecar():
    found = made(ids=["x", "y", "x", "x"])
    assert (ids_of(found), excluded(found)) == (["x", "y", "x", "x"], {})
    assert found.closed() == {2: "repeated", 3: "repeated"}, "what the client's own picks leave out"
    with pytest.raises(ValueError, match="ids has x more than once; every candidate needs one of its own"):
        made(ids=["x", "y", "x", "x"], strict=True)


# Images


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


def test_strict_raises_for_the_first_of_each_kind():
    for images, texts, ids, kind, words in (
        ([None, *FILES[1:]], list("abcd"), None, TypeError, r"images\[0\] is None"),
        (FILES, ["a", None, "c", "d"], None, TypeError, r"texts\[1\] is None"),
        (FILES, ["a", "b", "\udcff", "d"], None, ValueError, r"texts\[2\] has half a character"),
        (FILES, list("abcd"), ["a", "b", "c", ""], ValueError, r"ids\[3\] is ''"),
    ):
        with pytest.raises(kind, match=words):
            made(images, texts, ids, strict=True)


def test_words_about_a_candidate_are_one_short_line():
    assert printable("a\n\x1b[31mb") == "a  [31mb"
    assert len(printable("x" * 1000)) == MAX_WORDS
