"""The demo's data set is icons with their names, split into a noisy pool, a curated set and an evaluation.

A picture's *concept* is its name without words of style and size: "arrow-circle-left-20-filled" is "arrow
circle left". The pool keeps the raw names. The curated set holds concepts that several families draw, so that
the name does tell what is in the picture. The evaluation comes from families of which nothing is trained on.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from selector_tools.demo import fonts, raster

RECIPE = 1  # must rise with every change that alters the data, as it is part of the cache's key
STYLE = """
    alt baseline bold duotone fill filled ios large lg light line logo ltr md medium micro mini o original
    outline outlined plain regular round rounded rtl sharp simple sm small solid thin variant wordmark xl xs
"""
MOST_WORDS = 3  # that a concept may have to be curated or evaluated
EVALUATED_FAMILIES = 3  # must draw a concept of the evaluation, at least one of them for training
CURATED_FAMILIES = 2  # for training must draw a concept of the curated set
CURATED_EACH = 4  # pictures of one concept in the curated set
CURATED_SIZE = 5000
CLASS_SIZE = 2  # pictures that make a concept of the evaluation a zero-shot class

# A picture whose cosine with another is above this nearly repeats it.
ALIKE = {"same": 0.97, "other": 0.98}  # where the other has the same concept, or another one
ALIKE_CURATED = {"same": 0.95, "other": 0.95}
ALIKE_EVALUATED = 0.97

PARTS = ("pool", "curated", "evaluation")
COLUMNS = ("captions", "concepts", "families")

_STYLE = frozenset(STYLE.split())

Progress = Callable[[str, int, int], None]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class IconSet:
    """`n` icon pictures with their captions."""

    pixels: NDArray[np.uint8]  # [n, 32, 32], from 0 (blank paper) to 255 (full ink) in multiples of 17 (4 bits)
    captions: tuple[str, ...]  # the raw name's words in the pool, else the concept
    concepts: tuple[str, ...]  # "" where the name has no word
    families: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = len(self.pixels), len(self.captions), len(self.concepts), len(self.families)
        if len(set(counts)) > 1:
            raise ValueError(f"pixels, captions, concepts and families differ in number: {counts}")

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Rows) -> "IconSet":
        """Returns the icons of these rows, in this order."""
        return IconSet(self.pixels[rows], *(_of(getattr(self, column), rows) for column in COLUMNS))


@dataclass(frozen=True)
class DemoData:
    """What the demo trains on (`pool` and `curated`, both in random order) and what it is judged by (`evaluation`)."""

    pool: IconSet
    curated: IconSet
    evaluation: IconSet
    class_names: tuple[str, ...]  # zero-shot classes, sorted: concepts with two or more evaluation pictures
    labels: NDArray[np.int64]  # [len(evaluation)], index into class_names, -1 where the icon is in no class


def load(progress: Progress | None = None, cache_dir: Path | None = None) -> DemoData:
    """Returns the data from the cache, or else draws it from the installed fonts (half a minute) and caches it.

    `progress(stage, done, total)` is called on the way: the stage "draw" counts glyphs, then "split" its steps.
    `cache_dir` is by default jest-selector in the user's cache folder. Raises DemoFontsError where the data is not
    cached and the fonts are not installed.
    """
    folder = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jest-selector"
    # Pillow counts because it brings the FreeType that draws the glyphs.
    key = json.dumps([RECIPE, PIL.__version__, sorted(fonts.VERSIONS.items())])
    path = folder / f"icons-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    try:
        return _read(path)
    except Exception:  # it is not there, or damaged, of which zipfile and numpy complain in a dozen ways
        data = build(progress=progress)
    try:
        _write(path, data)
    except OSError as error:
        warnings.warn(f"the icons are not cached and will be drawn again next time: {error}", stacklevel=2)
    return data


def shuffle_captions(captions: Sequence[str], share: float, seed: int) -> tuple[tuple[str, ...], Mask]:
    """Returns captions of which a random `share` (0 to 1) changed places, and which are wrong now, bool [n].

    An entry that is handed the very words it had does not count as mislabelled.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of captions to shuffle must be between 0 and 1, not {share}")
    chosen = np.random.default_rng(seed).permutation(len(captions))[: round(share * len(captions))].tolist()
    shuffled = list(captions)
    for receiver, giver in zip(
        chosen, chosen[1:] + chosen[:1], strict=True
    ):  # they move in a ring, so that none keeps its own
        shuffled[receiver] = captions[giver]
    return tuple(shuffled), np.array([new != old for new, old in zip(shuffled, captions, strict=True)], bool)


def concept(name: str) -> str:
    """Returns the words of a glyph's name without style, size and numbers, sorted as fonts differ in their order."""
    words = sorted(set(re.findall("[a-z]+", name.lower())))
    # A name of nothing but style words means them, as "bold" does in a text editor.
    return " ".join([word for word in words if word not in _STYLE] or words)


def build(
    families: Sequence[fonts.Family] = fonts.FAMILIES,
    curated_size: int = CURATED_SIZE,
    progress: Progress | None = None,
) -> DemoData:
    """Draws the icons of `families` and splits them. The result is the same on every run."""
    report: Progress = progress or (lambda *_: None)
    icons, logos = _draw(families, report)
    held_out = np.isin(icons.families, [family.name for family in families if family.held_out])
    short = np.array([1 <= len(words.split()) <= MOST_WORDS for words in icons.concepts], bool)

    report("split", 0, 3)
    everything = np.ones(len(icons), bool)
    known = (_artists(icons, everything) >= EVALUATED_FAMILIES) & (_artists(icons, ~held_out) >= 1)
    evaluation = icons.take(np.flatnonzero(held_out & known & short))
    evaluation = evaluation.take(raster.distinct(evaluation.pixels, evaluation.concepts, **ALIKE))

    report("split", 1, 3)
    training = ~held_out
    training[training] = ~raster.resembles(icons.pixels[training], icons.pixels[held_out], ALIKE_EVALUATED)

    report("split", 2, 3)
    rng = np.random.default_rng(0)  # so that a set's first rows are a fair sample of it
    shared = _artists(icons, training) >= CURATED_FAMILIES
    curated = rng.permutation(np.flatnonzero(training & shared & short & ~logos))
    curated = curated[raster.distinct(icons.pixels[curated], _of(icons.concepts, curated), **ALIKE_CURATED)]
    curated = curated[_at_most(CURATED_EACH, _of(icons.concepts, curated))][:curated_size]
    training[curated] = False

    report("split", 3, 3)
    return _judged_by(
        evaluation,
        pool=icons.take(rng.permutation(np.flatnonzero(training))),
        curated=icons.take(curated),
    )


def _draw(families: Sequence[fonts.Family], report: Progress) -> tuple[IconSet, Mask]:
    """Returns the families' icons without near-copies inside a family, and which of them are logos, bool [n]."""
    glyphs = {font: list(fonts.glyphs(font)) for family in families for font in family.fonts}
    done, total = 0, sum(map(len, glyphs.values()))
    drawn: list[tuple[raster.Ink, str, str, bool]] = []  # ink, name, family, logo
    for family in families:
        icons = []
        for font in family.fonts:
            report("draw", done, total)
            done += len(glyphs[font])
            chars = [chr(code) for code, _ in glyphs[font]]
            for index, ink in raster.render(fonts.locate(font, font.path), chars):
                icons.append((ink, glyphs[font][index][1], family.name, font.logos))
        inks, concepts = np.stack([icon[0] for icon in icons]), [concept(icon[1]) for icon in icons]
        drawn += [icons[row] for row in raster.distinct(inks, concepts, **ALIKE)]
    report("draw", done, total)
    pixels, names, artists, logos = zip(*drawn, strict=True)
    captions = tuple(" ".join(re.findall("[a-z0-9]+", name.lower())) for name in names)
    return IconSet(np.stack(pixels), captions, tuple(map(concept, names)), artists), np.array(logos)


def _of(column: Sequence[str], rows: Rows) -> tuple[str, ...]:
    return tuple(column[row] for row in rows.tolist())


def _at_most(times: int, words: Sequence[str]) -> Mask:
    """Returns bool [n], which is False where the same string was there `times` times before."""
    seen: Counter[str] = Counter()
    seen_before = []
    for word in words:
        seen_before.append(seen[word])
        seen[word] += 1
    return np.array(seen_before, int) < times


def _artists(icons: IconSet, chosen: Mask) -> Rows:
    """Returns for each icon [n] how many families draw its concept, counting only the `chosen` icons (bool [n])."""
    families = defaultdict(set)
    for row in np.flatnonzero(chosen).tolist():
        families[icons.concepts[row]].add(icons.families[row])
    return np.array([len(families.get(words, ())) for words in icons.concepts], np.intp)


def _judged_by(evaluation: IconSet, pool: IconSet, curated: IconSet) -> DemoData:
    """Returns the data with the classes of `evaluation`, and with concepts for captions in all but the pool."""
    times = Counter(evaluation.concepts)
    names = tuple(sorted(words for words, count in times.items() if count >= CLASS_SIZE))
    index = {words: label for label, words in enumerate(names)}
    labels = np.array([index.get(words, -1) for words in evaluation.concepts], np.int64)
    curated, evaluation = (replace(icons, captions=icons.concepts) for icons in (curated, evaluation))
    return DemoData(pool, curated, evaluation, names, labels)


def _write(path: Path, data: DemoData) -> None:
    """Writes the icons as an archive of plain arrays, whole or not at all."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    for part in PARTS:
        icons: IconSet = getattr(data, part)
        shades = icons.pixels // 17
        arrays[f"{part}.pixels"] = np.bitwise_or(shades[..., ::2] << 4, shades[..., 1::2], dtype=np.uint8)
        for column in COLUMNS:
            arrays[f"{part}.{column}"] = np.frombuffer("\n".join(getattr(icons, column)).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _read(path: Path) -> DemoData:
    """Returns the data that `_write` wrote. Raises OSError, or other errors where the archive is damaged."""
    parts = {}
    with np.load(path, allow_pickle=False) as arrays:
        for part in PARTS:
            packed = arrays[f"{part}.pixels"]
            pixels = np.empty((len(packed), raster.SIDE, raster.SIDE), np.uint8)
            pixels[..., ::2], pixels[..., 1::2] = (packed >> 4) * 17, (packed & 15) * 17
            columns = (arrays[f"{part}.{column}"].tobytes().decode().split("\n") for column in COLUMNS)
            parts[part] = IconSet(pixels, *map(tuple, columns))
    return _judged_by(**parts)
