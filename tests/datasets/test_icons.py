"""The demo's data: names to concepts, near-copies, splits, shuffling, cache."""

import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from selector_tools.datasets import dataset, fonts, icons, raster, splitting

SMALL = ("codicon", "elusive", "eva", "ion", "lucide", "typicons")


@pytest.fixture(scope="module")
def small() -> dataset.Dataset:
    """The splits of a few small families: a second or two."""
    return icons.build([family for family in fonts.FAMILIES if family.name in SMALL], curated_size=100)


def strokes(n: int, seed: int = 0) -> raster.Ink:
    """uint8 [n, 32, 32]: pictures of sparse noise, any two of them far from alike."""
    noise = np.random.default_rng(seed).random((n, 32, 32))
    return np.where(noise < 0.2, 255, 0).astype(np.uint8)


def with_spots(picture: raster.Ink, spots: int) -> raster.Ink:
    """A nearly equal picture: `spots` more blank pixels inked, from the left upper corner on."""
    changed = picture.copy()
    changed.flat[np.flatnonzero(picture == 0)[:spots]] = 255
    return changed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("arrow-circle-left-20-filled", "arrow circle left"),
        ("add_a_photo", "a add photo"),
        ("Photo-Add", "add photo"),
        ("youtube-logo-thin", "youtube"),
        ("battery50-line", "battery"),
        ("format-bold", "format"),
        ("bold", "bold"),
        ("24", ""),
    ],
)
def test_a_concept_is_the_name_without_style_size_and_order(name: str, words: str) -> None:
    assert splitting.concept(name) == words


def test_near_copies_are_judged_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = strokes(3)
    pictures = np.stack([a, b, b, with_spots(a, 12), with_spots(a, 12), c])
    kinds = ["a", "b", "z", "a", "z", "c"]
    for block in (2, 1024):
        monkeypatch.setattr(raster, "BLOCK", block)
        assert raster.distinct(pictures, kinds, same=0.95, other=0.999).tolist() == [0, 1, 5]  # 4 is 3's copy
        assert raster.distinct(pictures, kinds, same=0.999, other=0.999).tolist() == [0, 1, 3, 5]
        assert raster.distinct(pictures[[0, 4]], ["a", "z"], same=0.95, other=0.999).tolist() == [0, 1]
        assert raster.resembles(pictures, np.stack([a]), above=0.95).tolist() == [
            True,
            False,
            False,
            True,
            True,
            False,
        ]


def test_a_picture_is_not_dropped_for_resembling_a_dropped_one() -> None:
    a = strokes(1)[0]
    chain = np.stack([a, with_spots(a, 20), with_spots(a, 40)])
    ink = chain.reshape(3, 16, 2, 16, 2).sum(axis=(2, 4)).reshape(3, -1) / 255
    unit = ink / np.linalg.norm(ink, axis=1, keepdims=True)
    limit = float((unit[0] @ unit[2] + min(unit[0] @ unit[1], unit[1] @ unit[2])) / 2)
    assert raster.distinct(chain, ["x"] * 3, same=limit, other=1).tolist() == [0, 2]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_shuffling_moves_the_share_and_reports_what_became_wrong(share: float) -> None:
    captions = [f"icon {i % 400}" for i in range(1000)]
    shuffled, wrong = dataset.shuffle_captions(captions, share, seed=3)
    assert Counter(shuffled) == Counter(captions)
    assert wrong.tolist() == [new != old for new, old in zip(shuffled, captions, strict=True)]
    assert share * 1000 - 20 <= wrong.sum() <= share * 1000
    again, _ = dataset.shuffle_captions(captions, share, seed=3)
    other, _ = dataset.shuffle_captions(captions, share, seed=4)
    assert again == shuffled
    assert (other != shuffled) == (share > 0)


def test_an_entry_handed_its_own_words_is_not_mislabelled() -> None:
    shuffled, wrong = dataset.shuffle_captions(["cat"] * 10, 1.0, seed=0)
    assert shuffled == ("cat",) * 10
    assert not wrong.any()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        dataset.shuffle_captions(["cat"], share, seed=0)


def test_the_splits_hold_what_they_promise(small: dataset.Dataset) -> None:
    assert 1270 <= len(small.pool) <= 1400
    assert len(small.curated) == 100
    assert 380 <= len(small.evaluation) <= 420
    assert set(small.pool.families) | set(small.curated.families) == {"codicon", "elusive", "eva", "typicons"}
    assert set(small.evaluation.families) == {"ion", "lucide"}
    assert max(Counter(small.curated.concepts).values()) <= splitting.CURATED_EACH
    for part in (small.curated, small.evaluation):
        assert part.captions == part.concepts
        assert all(1 <= len(words.split()) <= splitting.MOST_WORDS for words in part.concepts)
    assert any("outline" in caption.split() for caption in small.pool.captions)
    for part in (small.pool, small.curated, small.evaluation):
        assert part.pixels.dtype == np.uint8
        assert not (part.pixels % 17).any()
        assert part.pixels.std(axis=(1, 2)).min() >= raster.FAINTEST
    seen = np.concatenate([small.pool.pixels, small.curated.pixels])
    assert not raster.resembles(small.evaluation.pixels, seen, splitting.ALIKE_EVALUATED).any()


def test_labels_name_the_concepts_with_several_pictures(small: dataset.Dataset) -> None:
    times = Counter(small.evaluation.concepts)
    assert small.class_names == tuple(sorted(words for words in times if times[words] > 1))
    for label, words in zip(small.labels.tolist(), small.evaluation.concepts, strict=True):
        assert small.class_names[label] == words if label >= 0 else times[words] == 1


def test_fonts_are_read_without_importing_their_packages(small: dataset.Dataset) -> None:
    assert not [name for name in sys.modules if name.startswith(("qtawesome", "tkinter_icons"))]


def test_a_missing_or_other_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    font = fonts.FAMILIES[0].fonts[0]
    hint = r"pip install 'jest-selector\[demo\]'"
    with pytest.raises(dataset.SourceError, match=f"lacks nowhere.ttf.*{hint}"):
        fonts.locate(font, "nowhere.ttf")
    monkeypatch.setitem(fonts.VERSIONS, font.distribution, "0.1")
    with pytest.raises(dataset.SourceError, match=f"0.1, which is installed as version.*{hint}"):
        fonts.locate(font, font.path)
    monkeypatch.setitem(fonts.VERSIONS, "no-such-icons", "1.0")
    with pytest.raises(dataset.SourceError, match=f"no-such-icons 1.0, which is not installed.*{hint}"):
        fonts.locate(replace(font, distribution="no-such-icons"), font.path)


def test_every_wheel_has_its_licence_stated() -> None:
    listed = Path(fonts.__file__).with_name("LICENSES.md").read_text("utf-8")
    assert {font.distribution for family in fonts.FAMILIES for font in family.fonts} == set(fonts.VERSIONS)
    for wheel, version in fonts.VERSIONS.items():
        assert f"| {wheel} | {version} |" in listed


def same(a: dataset.Dataset, b: dataset.Dataset) -> bool:
    parts = [(getattr(a, part), getattr(b, part)) for part in dataset.PARTS]
    return (
        all(np.array_equal(x.pixels, y.pixels) for x, y in parts)
        and all(getattr(x, field) == getattr(y, field) for x, y in parts for field in dataset.COLUMNS)
        and a.class_names == b.class_names
        and np.array_equal(a.labels, b.labels)
    )


def test_the_cache_is_written_once_and_rebuilt_when_damaged(
    small: dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[dataset.Progress | None] = []

    def build(progress: dataset.Progress | None) -> dataset.Dataset:
        builds.append(progress)
        return small

    monkeypatch.setattr(icons, "build", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert same(icons.load(), small)
    assert same(icons.load(), small)
    assert len(builds) == 1
    (file,) = (tmp_path / "jest-selector").iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for number, damaged in enumerate((b"", b"no archive", whole[: len(whole) // 2], bytes(flipped)), start=2):
        file.write_bytes(damaged)
        assert same(icons.load(), small)
        assert len(builds) == number
        assert file.read_bytes()[:4] == whole[:4]
        assert list(file.parent.iterdir()) == [file]


def test_data_that_cannot_be_cached_is_still_returned(
    small: dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icons, "build", lambda progress: small)
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="not cached"):
        assert icons.load(cache_dir=tmp_path / "file") is small


def test_columns_of_different_length_are_refused(small: dataset.Dataset) -> None:
    assert {field.name for field in fields(dataset.Pictures)} == {"pixels", *dataset.COLUMNS}
    with pytest.raises(ValueError, match="differ in number"):
        replace(small.pool, captions=("one",))
