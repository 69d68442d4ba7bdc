"""What the reference makes of samples, kept with a data set: found in every layout, sent along, and left out sample by
sample where it cannot be used."""

import io
import json
import logging
import re
from dataclasses import replace

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from selector_client import ModelEmbeddings, Reference, RemoteError, SelectingLoader, Selector
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.columns import Terms
from selector_client.selecting.selection import Prefiltered
from support.model import embed, samples
from support.rules import arrays_of
from support.wire import some_embeddings

COUNT = 40
PIXELS, TOKENS = samples(COUNT)
IMAGE, TEXT, SCALE, BIAS = some_embeddings(COUNT)[1]
HALF = np.stack([IMAGE, TEXT], axis=1).astype(np.float16)  # [B, 2, D], as members have it
WIDTH = IMAGE.shape[1]
REFERENCE = Reference("x", SCALE, BIAS, WIDTH)
NAN = float("nan")


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def arrow(array):
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.reshape(-1), pyarrow.float16()), WIDTH)


def columns(**more):
    return {"images": PIXELS, "texts": TOKENS} | more


def pair(image, text):
    return columns(reference_image=image, reference_text=text)


def in_samples(member, count=COUNT):
    return [
        {"png": PIXELS[i], "txt": f"w{i}"} | ({} if member(i) is None else {"ref.npy": member(i)}) for i in range(count)
    ]


HALVES = [HALF[:, side] for side in (0, 1)]
LAYOUTS = {
    "columns": pair(*HALVES),
    "columns of torch": pair(*map(torch.from_numpy, HALVES)),
    "columns of Arrow": pair(*map(arrow, HALVES)),
    "chunked columns of Arrow": pair(*(pyarrow.chunked_array([arrow(one[:7]), arrow(one[7:])]) for one in HALVES)),
    "columns of pandas": pair(*(pandas.Series(list(one)) for one in HALVES)),
    "columns of lists": pair(*(list(one) for one in HALVES)),
    "a member of each sample": in_samples(lambda i: HALF[i]),
    "a member that is not decoded": in_samples(lambda i: npy(HALF[i])),
    "members put together": columns(**{"ref.npy": HALF}),
    "members put together by torch": columns(**{"ref.npy": torch.from_numpy(HALF)}),
    "members in a list": columns(**{"ref.npy": list(HALF)}),
}


def sent(found, strict=True):
    candidates = Candidates.samples(PIXELS, TOKENS, None, Terms(strict), found)
    return candidates, [np.asarray(values) for values in candidates.floats]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_found_in_the_layouts_of_data_loaders(layout):
    found = REFERENCE.find(LAYOUTS[layout])
    assert (found.logit_scale, found.logit_bias, found.fingerprint, found.width) == (SCALE, BIAS, "x", WIDTH)
    candidates, (image, text) = sent(found)
    assert (image.dtype, image.tobytes(), text.tobytes()) == (np.float16, HALVES[0].tobytes(), HALVES[1].tobytes())
    assert candidates.header.samples.reference.fingerprint == "x"


@pytest.mark.parametrize(
    ("super_batch", "named"),
    [
        ((PIXELS, TOKENS, HALF), 2),
        ([PIXELS, TOKENS, list(HALF)], 2),
        ([(PIXELS[i], TOKENS[i], HALF[i]) for i in range(COUNT)], 2),
        ([PIXELS, TOKENS, *HALVES], (2, 3)),
        (columns(seen=HALF), "seen"),
        (columns(a=HALVES[0], b=HALVES[1]), ("a", "b")),
    ],
    ids=["tuple", "list", "pairs", "two positions", "a name", "two names"],
)
def test_columns_of_other_names_and_positions(super_batch, named):
    _, floats = sent(replace(REFERENCE, columns=named).find(super_batch))
    assert [one.tobytes() for one in floats] == [one.tobytes() for one in HALVES]
    assert replace(REFERENCE, columns="other").find(super_batch) is None
    assert replace(REFERENCE, columns=9).find(super_batch) is None


def test_float64_as_lists_of_numbers_becomes_float32():
    _, floats = sent(REFERENCE.find(pair(IMAGE.tolist(), TEXT.tolist())))
    assert [one.dtype for one in floats] == [np.float32] * 2
    np.testing.assert_array_equal(floats[0], IMAGE)


BAD = {
    "missing": (None, "missing", "is None; every sample needs"),
    "damaged": (npy(HALF[0])[:-5], "unreadable", "bytes that are no .npy file"),
    "pickled": (npy(np.array([{}], object)), "unreadable", "bytes that are no .npy file"),
    "empty": (b"", "unreadable", "has 0 bytes"),
    "another width": (HALF[0][:, :-1], "format", f"has {WIDTH - 1} values; the reference's width is {WIDTH}"),
    "one row": (HALF[0][:1], "format", rf"\[1, {WIDTH}\]; must be floating-point numbers \[D\]"),
    "integers": (np.ones((2, WIDTH), np.int64), "format", rf"is int64 \[{WIDTH}\]"),
    "words": ("nonsense", "format", "must be floating-point numbers"),
    "a number": (3.5, "format", "must be floating-point numbers"),
    "not a number": (np.full((2, WIDTH), NAN, np.float16), "value", "is nan at 0; every value must be finite"),
    "infinite text": (np.stack([HALF[0][0], HALF[0][1] * np.float16(np.inf)]), "value", "text.*inf at 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_leaves_its_sample_out(name):
    member, reason, words = BAD[name]
    found = REFERENCE.find(in_samples(lambda i: member if i in (3, 8) else HALF[i]))
    candidates, floats = sent(found, strict=False)
    excluded = candidates.exclusions.found()
    assert {why: one.indices.tolist() for why, one in excluded.items()} == {reason: [3, 8]}
    assert re.search(words, excluded[reason].first), excluded[reason].first
    assert excluded[reason].first.startswith("reference.")
    assert all(np.isfinite(one).all() and one.shape == (COUNT, WIDTH) for one in floats)
    with pytest.raises((ValueError, TypeError), match=words):
        sent(found, strict=True)


def test_nulls_of_tables_leave_their_samples_out():
    rows = [None if i == 5 else list(map(float, HALF[i][0])) for i in range(COUNT)]
    for image in (pyarrow.array(rows, pyarrow.list_(pyarrow.float16(), WIDTH)), pandas.Series(rows), rows):
        candidates, _ = sent(REFERENCE.find(pair(image, HALVES[1])), strict=False)
        assert candidates.exclusions.found()["missing"].indices.tolist() == [5]


def test_half_missing_columns_leave_all_out_and_other_sizes_are_mistakes():
    candidates, _ = sent(REFERENCE.find(columns(reference_image=IMAGE)), strict=False)
    assert candidates.exclusions.found()["missing"].first.startswith("reference.text[0] is None")
    assert len(candidates.exclusions) == COUNT
    with pytest.raises(ValueError, match=f"reference has {COUNT - 1} entries, images has {COUNT}"):
        sent(REFERENCE.find(pair(IMAGE[1:], TEXT[1:])))
    with pytest.raises(ValueError, match=r"reference.image has shape \[40\]; must be \[B, D\]"):
        sent(replace(REFERENCE, columns=("a", "b")).find(columns(a=IMAGE[:, 0], b=TEXT)))


def test_the_width_is_that_of_most_rows_unless_it_is_given():
    rows = [IMAGE[i][: WIDTH - (i < 3)] for i in range(COUNT)]
    unsaid = replace(REFERENCE, width=None)
    candidates, (image, _) = sent(unsaid.find(pair(rows, TEXT)), strict=False)
    assert (candidates.exclusions.found()["format"].indices.tolist(), image.shape) == ([0, 1, 2], (COUNT, WIDTH))
    candidates, _ = sent(replace(REFERENCE, width=WIDTH + 1).find(pair(IMAGE, TEXT)), strict=False)
    assert len(candidates.exclusions) == COUNT, "arrays of another width, too"


FACTS = {"version": 1, "fingerprint": "x", "name": "any", "width": WIDTH, "scale": SCALE, "bias": BIAS, "ids": "text"}


def test_what_made_them_is_read_from_where_it_stands(tmp_path):
    (tmp_path / "reference.json").write_text(json.dumps(FACTS))
    assert Reference.read(tmp_path / "reference.json") == REFERENCE
    schema = pyarrow.schema([("id", pyarrow.string())], {"selector.scores": json.dumps(FACTS)})
    assert Reference.of(schema.metadata, "seen") == replace(REFERENCE, columns="seen")
    assert Reference.of(FACTS) == REFERENCE
    assert Reference.of(FACTS | {"width": None}) == replace(REFERENCE, width=None)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "3", '{"fingerprint": "x", "scale": "much", "bias": 0}', '{"scale": 1}']
)
def test_what_does_not_say_it_is_refused(tmp_path, content):
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(ValueError, match="must have fingerprint, scale and bias of the reference"):
        Reference.read(tmp_path / "reference.json")
    (tmp_path / "reference.json").write_text("no json")
    with pytest.raises(ValueError, match="Expecting value"):
        Reference.read(tmp_path / "reference.json")


# Loaders


@pytest.fixture(scope="module")
def learner_only(start_sidecars, bundles):
    """A sidecar without a reference."""
    with start_sidecars() as start:
        yield start({"learner": bundles.flags["learner"]})


@pytest.fixture(scope="module")
def seen(bundles):
    """What the reference of `server` makes of the samples, and who it is."""
    image, text, scale, bias = arrays_of(embed(bundles.reference, PIXELS, TOKENS))
    return np.stack([image, text], axis=1), Reference("set by the test", scale, bias, image.shape[1])


RULE = {"pair_criterion": "easy-reference", "prefilter": 2.5, "seed": 4}


def test_a_sidecar_with_a_learner_only_picks_as_one_with_the_reference(server, learner_only, seen):
    rows, reference = seen
    fingerprint = None
    with Selector(server.address, on_error="raise", **RULE) as selector:
        fingerprint = selector.connect().reference.fingerprint
        wanted = selector.select(
            PIXELS, TOKENS, reference=replace(reference, fingerprint=fingerprint).embeddings(rows[:, 0], rows[:, 1])
        ).indices
    stream = [[{"png": PIXELS[i], "txt": TOKENS[i], "ref.npy": npy(rows[i]), "row": i} for i in range(COUNT)]]
    show = lambda batch: {"images": PIXELS, "texts": TOKENS}  # noqa: E731
    for address in (server.address, learner_only.address):
        with Selector(address, on_error="raise", **RULE) as selector:
            loader = SelectingLoader(stream, selector, view=show, reference=replace(reference, fingerprint=fingerprint))
            (batch,) = loader
            assert [sample["row"] for sample in batch] == wanted.tolist()
            assert loader.last.prefiltered == Prefiltered(COUNT, 0, 20)


def test_samples_without_it_are_left_out_and_super_batches_without_it_are_uniform(learner_only, caplog):
    whole = in_samples(lambda i: HALF[i])
    some = in_samples(lambda i: None if i < 5 else HALF[i])
    none = in_samples(lambda i: None)
    with Selector(learner_only.address, seed=4) as selector, caplog.at_level(logging.WARNING):
        loader = SelectingLoader([whole, some, none, none, whole], selector, reference=REFERENCE, prefetch=0)
        told = [(loader.last.fallback, dict(loader.last.excluded)) for batch in loader if batch]
    assert [fallback for fallback, _ in told] == ["", "", "failed_precondition", "failed_precondition", ""]
    assert told[1][1]["missing"].indices.tolist() == [0, 1, 2, 3, 4]
    assert caplog.text.count("no sample of a super-batch has what the reference makes of it") == 1


def test_a_loader_that_was_set_up_wrongly_stops_with_the_reason(server, learner_only):
    stream = [in_samples(lambda i: HALF[i])]
    with Selector(learner_only.address, seed=1) as selector:
        wrong = SelectingLoader(stream, selector, reference=replace(REFERENCE, columns="emb.npy"))
        with pytest.raises(ValueError, match=r"no sample of the first super-batch has .* \(emb.npy\)"):
            list(wrong)
        narrow = SelectingLoader(stream, selector, reference=replace(REFERENCE, width=WIDTH + 1))
        with pytest.raises(ValueError, match=f"no candidate can be used: .* the reference's width is {WIDTH + 1}"):
            list(narrow)
        with pytest.raises(TypeError, match="reference is for super_batches that have samples"):
            SelectingLoader.over(PIXELS, selector, super_batch_size=20, view=lambda rows: {}, reference=REFERENCE)
    with Selector(server.address, seed=1) as selector:
        with pytest.raises(RemoteError, match=r"samples\.reference\.fingerprint is x; this server's reference is"):
            list(SelectingLoader(stream, selector, reference=REFERENCE))


def test_another_reference_in_the_middle_of_a_run_makes_uniform_sub_batches(server, seen, caplog):
    rows, reference = seen
    with Selector(server.address, seed=1) as selector, caplog.at_level(logging.WARNING):
        own = replace(reference, fingerprint=selector.connect().reference.fingerprint)
        ready = own.embeddings(rows[:, 0], rows[:, 1])
        stream = [
            columns(reference=ready),
            columns(reference=replace(ready, fingerprint="y")),
            columns(reference=ready),
        ]
        loader = SelectingLoader(stream, selector, prefetch=0, reference=REFERENCE)
        assert [loader.last.fallback for _ in loader] == ["", "failed_precondition", ""]
    assert caplog.text.count("samples.reference.fingerprint is y; this server's reference is") == 1


def test_a_view_of_a_dataset_gives_rows_that_may_be_missing(learner_only):
    def view(indices):
        found = [None if i == 7 else IMAGE[i] for i in indices]
        return {
            "images": PIXELS[indices],
            "texts": TOKENS[indices],
            "reference": REFERENCE.embeddings(found, TEXT[indices]),
        }

    with Selector(learner_only.address, on_error="raise", **RULE) as selector:
        loader = SelectingLoader.over(PIXELS, selector, super_batch_size=COUNT, view=view, shuffle=False)
        (batch,) = loader
        assert len(batch) == 8
        assert loader.last.excluded["missing"].indices.tolist() == [7]


def test_embeddings_of_one_call_are_still_arrays():
    with pytest.raises(ValueError, match=r"reference\.fingerprint is ''"):
        sent(ModelEmbeddings(IMAGE, TEXT, 1.0))
