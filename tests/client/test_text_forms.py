"""Captions, token ids and sample ids in the forms in which people have them: what is sent of each, and what is said of
those that cannot be."""

import decimal

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from selector_proto.contract import MAX_WORDS, printable
from support.forms import FILES, TOKENS, excluded, ids_of, made, texts_of, tokens_of

NEEDS = "every candidate needs a text"


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
