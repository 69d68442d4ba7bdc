"""Super-batches in the layouts of data loaders, shown and cut without a view or a take of one's own."""

from collections import namedtuple

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from selector_client import SelectingLoader, Selection, Selector
from selector_client.loading.batch_layout import default_take, default_view, with_caption
from support.loaders import Chooser, over, rest
from support.model import samples

PIXELS, TOKENS = samples(10)
WORDS = [f"w{index}" for index in range(10)]
PICKS = np.array([7, 2])
Pair = namedtuple("Pair", ["images", "texts", "weight"])


def test_columns_of_a_mapping_by_their_usual_names():
    for images in ("images", "image", "jpg", "png", "webp", "photo.jpg", "A.PNG"):
        for texts in ("texts", "text", "captions", "caption", "txt", "en.txt"):
            shown = default_view({images: PIXELS, "other": 1, texts: WORDS})
            assert (shown["images"] is PIXELS, shown["texts"], list(shown)) == (True, WORDS, ["images", "texts"])
    shown = default_view({"images": 1, "texts": 2, "ids": 3, "image": 4, "caption": 5, "id": 6})
    assert shown == {"images": 1, "texts": 2, "ids": 3}


@pytest.mark.parametrize(
    ("super_batch", "words"),
    [
        ({"pixels": 1}, "in a dict; give SelectingLoader a view, which has pixels"),
        ([{"a": 1}, {"a": 2}], "in a list; give SelectingLoader a view"),
        ([1], "in a list"),
        (3, "in a int"),
    ],
)
def test_what_has_no_images_and_texts_is_named(super_batch, words):
    with pytest.raises(TypeError, match=f"cannot find images and texts {words}"):
        default_view(super_batch)


def test_entries_that_are_not_per_sample_pass_through():
    table = pandas.DataFrame({"row": range(10)}, index=range(90, 100))
    batch = {
        "images": PIXELS,
        "texts": tuple(WORDS),
        "epoch": 3,
        "split": "train",
        "none": None,
        "scale": np.float32(2),
        "table": table,
        "series": table["row"],
        "arrow": pyarrow.array(range(10)),
        "sizes": [8, 8],
        "mean": torch.zeros(3),
        "nested": {"labels": list(range(10)), "seed": 5},
        "crops": [torch.arange(10), torch.arange(10) * 2],
        "pair": Pair(np.arange(10), WORDS, 0.5),
    }
    found = default_take(batch, PICKS, 10)
    assert np.array_equal(found["images"], PIXELS[PICKS])
    assert found["texts"] == ["w7", "w2"]
    for name in ("epoch", "split", "none", "scale", "sizes"):
        assert found[name] is batch[name] or found[name] == batch[name]
    assert found["mean"] is batch["mean"]
    assert found["table"]["row"].tolist() == found["series"].tolist() == found["arrow"].to_pylist() == [7, 2]
    assert found["nested"] == {"labels": [7, 2], "seed": 5}
    assert [crop.tolist() for crop in found["crops"]] == [[7, 2], [14, 4]]
    assert (type(found["pair"]), found["pair"].texts, found["pair"].weight) == (Pair, ["w7", "w2"], 0.5)


@pytest.mark.parametrize("kind", ["mappings", "tuples"])
def test_lists_of_samples(kind):
    """As WebDataset's batched(B, collation_fn=list) gives them, and a collate_fn that collates nothing."""
    if kind == "mappings":
        rows = [{"__key__": str(i), "jpg": PIXELS[i], "txt": WORDS[i]} for i in range(10)]
        del rows[4]["txt"]
        rows[5]["png"] = rows[5].pop("jpg")
    else:
        rows = [(PIXELS[i], WORDS[i], i) for i in range(10)]
    shown = default_view(rows)
    assert np.array_equal(np.stack(shown["images"]), PIXELS)
    assert shown["texts"] == [None if kind == "mappings" and i == 4 else text for i, text in enumerate(WORDS)]
    assert default_take(rows, PICKS, 10) == [rows[7], rows[2]]


def test_ids_of_samples_are_shown_if_all_have_them():
    rows = [{"image": PIXELS[i], "text": WORDS[i], "ids": i} for i in range(10)]
    assert default_view(rows)["ids"] == list(range(10))
    del rows[3]["ids"]
    assert "ids" not in default_view(rows)


@pytest.mark.parametrize("images", ["pil", "files", "tensors"])
def test_samples_of_webdataset_train_as_they_come(server, images):
    import io

    def picture(pixels):
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.save(file, "PNG")
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return {"pil": image, "files": file.getvalue(), "tensors": tensor}[images]

    rows = [{"png": picture(PIXELS[i]), "txt": WORDS[i], "row": i} for i in range(10)]
    with Selector(server.address, filter_ratio=0.5, on_error="raise", seed=3) as selector:
        (batch,) = SelectingLoader([rows], selector)
        plain = selector.select(PIXELS, WORDS)
        selector.resume(0)
        wanted = selector.select(PIXELS, WORDS)
    assert [sample["row"] for sample in batch] == wanted.indices.tolist()
    assert len(plain.indices) == 5


# Several captions


def several(index):
    return [f"{WORDS[index]} {number}" for number in range(1 + index % 3)]


def check(texts, rows, captions):
    assert list(texts) == [several(row)[number] for row, number in zip(rows, captions, strict=True)]


@pytest.mark.parametrize("layout", ["mapping", "tuple", "list", "samples", "pairs", "pandas"])
def test_take_yields_the_caption_that_was_shown(server, layout):
    texts = [several(index) for index in range(10)]
    rows = list(range(10))
    super_batch = {
        "mapping": {"images": PIXELS, "captions": texts, "row": rows},
        "tuple": (PIXELS, texts, rows),
        "list": [PIXELS, texts, rows],
        "samples": [{"image": PIXELS[i], "caption": texts[i], "row": i} for i in rows],
        "pairs": [(PIXELS[i], texts[i], i) for i in rows],
        "pandas": {"images": PIXELS, "captions": pandas.Series(texts, index=rows[::-1]), "row": rows},
    }[layout]
    seen = set()
    with Selector(server.address, filter_ratio=0.4, on_error="raise", seed=1) as selector:
        loader = SelectingLoader([super_batch] * 4, selector)
        for batch in loader:
            if layout in ("samples", "pairs"):
                parts = [tuple(sample.values()) if isinstance(sample, dict) else sample for sample in batch]
                _, found, taken = zip(*parts, strict=True)
            else:
                _, found, taken = batch.values() if isinstance(batch, dict) else batch
            assert list(taken) == loader.last.indices.tolist()
            check(found, taken, loader.last.captions)
            seen |= set(loader.last.captions.tolist())
    assert seen == {0, 1, 2}


def test_a_dataset_yields_the_caption_that_was_shown():
    class Chooses:
        def select(self, images, texts, *, step, ids):
            assert ids.tolist() == images
            return Selection(indices=np.array([2, 0]), captions=np.array([1, 0]))

    class Rows:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"row": index, "captions": [f"{index} a", f"{index} b"]}

    loader = SelectingLoader.over(
        Rows(),
        Chooses(),
        super_batch_size=3,
        view=lambda indices: {"images": indices.tolist(), "texts": [["a", "b"]] * 3},
        collate=list,
        shuffle=False,
    )
    assert list(loader) == [
        [{"row": 2, "captions": "2 b"}, {"row": 0, "captions": "0 a"}],
        [{"row": 5, "captions": "5 b"}, {"row": 3, "captions": "3 a"}],
    ]


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        (("image", ["a", "b"], 0.5), ("image", "b", 0.5)),
        (["image", ["a", "b"], 0.5], ["image", "b", 0.5]),
        (Pair("image", ["a", "b"], 0.5), Pair("image", "b", 0.5)),
        ({"image": 1, "en.TXT": ["a", "b"], "row": 2}, {"image": 1, "en.TXT": "b", "row": 2}),
        ({"image": 1, "row": 2}, {"image": 1, "row": 2}),
    ],
)
def test_a_sample_keeps_its_layout_with_one_of_its_captions(sample, shown):
    found = with_caption(sample, 1)
    assert (type(found), found) == (type(shown), shown)
    assert with_caption(sample, None) is sample


def test_a_take_of_ones_own_is_given_the_caption_that_was_shown(server):
    batch = {"images": PIXELS, "texts": [several(index) for index in range(10)]}
    with Selector(server.address, on_error="raise", seed=1) as selector:
        loader = SelectingLoader([batch], selector, take=lambda one, picks: [one["texts"][pick] for pick in picks])
        (texts,) = loader
        check(texts, loader.last.indices, loader.last.captions)


def test_drawn_captions_are_kept_over_a_resumption(monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    data = [{"images": PIXELS, "texts": [several(index) for index in range(10)]} for _ in range(6)]

    def loader(seed, prefetch):
        return SelectingLoader(data, Selector("localhost:1", seed=seed, sub_batch_size=4), prefetch=prefetch)

    wanted = [batch["texts"] for batch in loader(1, 0)]
    one = loader(1, 0)
    iterator = iter(one)
    found = [next(iterator)["texts"]]
    state = one.state_dict()
    ahead = loader(1, 0)
    _, *more = [ahead.last for _ in ahead]
    state["ahead"] = [
        {"indices": s.indices.tolist(), "fallback": s.fallback, "count": 2 + i, "captions": s.captions.tolist()}
        for i, s in enumerate(more[:2])
    ]
    other = loader(99, 0)
    other.load_state_dict(state)
    assert found + [batch["texts"] for batch in other] == wanted
    state["ahead"][0]["captions"] = [0]
    with pytest.raises(ValueError, match="captions are 1; must be 4, one for each index"):
        other.load_state_dict(state)


def test_states_of_version_0_1_are_still_read():
    loader = over(Chooser())
    rest(loader, 2)
    state = loader.state_dict()
    del state["digest"]
    other = over(Chooser())
    other.load_state_dict(state)
    assert rest(other, 3) == rest(over(Chooser()), 5)[2:]
