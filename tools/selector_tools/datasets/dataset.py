"""A data set of pictures with captions, split into a noisy pool, a curated set and an evaluation.

A picture's *concept* is what its caption says without words of style and size. The evaluation comes from families
(hands, fonts) of which nothing is trained on.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selector_tools.datasets.raster import SIDE

CLASS_SIZE = 2  # pictures that make a concept of the evaluation a zero-shot class, unless a data set asks for more
PARTS = ("pool", "curated", "evaluation")
COLUMNS = ("captions", "concepts", "families")

Progress = Callable[[str, int, int], None]  # what is under way, how much of it is done, and how much there is
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


class SourceError(RuntimeError):
    """What a data set is made from is missing, or is not what it should be."""


@dataclass(frozen=True)
class Pictures:
    """`n` pictures with their captions."""

    pixels: NDArray[np.uint8]  # [n, 32, 32], from 0 (blank paper) to 255 (full ink) in multiples of 17 (4 bits)
    captions: tuple[str, ...]  # as they come in the pool, else the concept
    concepts: tuple[str, ...]  # "" where the caption has no word
    families: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = len(self.pixels), len(self.captions), len(self.concepts), len(self.families)
        if len(set(counts)) > 1:
            raise ValueError(f"pixels, captions, concepts and families differ in number: {counts}")

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Rows) -> "Pictures":
        """Returns the pictures of these rows, in this order."""
        return Pictures(self.pixels[rows], *(column_of(getattr(self, column), rows) for column in COLUMNS))


@dataclass(frozen=True)
class Dataset:
    """What is trained on (`pool` and `curated`, both in random order) and what it is judged by (`evaluation`)."""

    pool: Pictures
    curated: Pictures
    evaluation: Pictures
    class_names: tuple[str, ...]  # zero-shot classes, sorted: concepts with class_size or more evaluation pictures
    labels: NDArray[np.int64]  # [len(evaluation)], index into class_names, -1 where the picture is in no class
    class_size: int = CLASS_SIZE
    licences: Mapping[str, str] = field(default_factory=dict)  # of the pictures of each family, as its source states it


def place(name: str, key: Mapping[str, object], folder: Path | None = None) -> Path:
    """Returns the cache's file for this key. `folder` is by default jest-selector in the user's cache folder."""
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jest-selector"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:16]}.npz"


def cached(name: str, key: Mapping[str, object], build: Callable[[], Dataset], folder: Path | None = None) -> Dataset:
    """Returns what `build` made for this key, from the cache if it is there.

    Everything that decides what comes out must be in `key`, as JSON takes it."""
    path = place(name, key, folder)
    try:
        return _read(path)
    except Exception:  # it is not there, or damaged, of which zipfile and numpy complain in a dozen ways
        data = build()
    try:
        _write(path, data)
    except OSError as error:
        warnings.warn(f"{name} are not cached and will be made again next time: {error}", stacklevel=3)
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


def column_of(column: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Returns the entries of these rows."""
    return tuple(column[row] for row in rows.tolist())


def classes(concepts: Sequence[str], least: int) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Returns the concepts that `least` pictures have, or more, sorted; and of each picture the index of its own among
    them, int64 [n], -1 where it is not there."""
    names = tuple(sorted(words for words, count in Counter(concepts).items() if count >= least))
    index = {words: label for label, words in enumerate(names)}
    return names, np.array([index.get(words, -1) for words in concepts], np.int64)


def judged_by(
    evaluation: Pictures,
    pool: Pictures,
    curated: Pictures,
    class_size: int = CLASS_SIZE,
    licences: Mapping[str, str] | None = None,
) -> Dataset:
    """Returns the data with the classes of `evaluation`, and with concepts for captions in all but the pool."""
    names, labels = classes(evaluation.concepts, class_size)
    curated, evaluation = (replace(part, captions=part.concepts) for part in (curated, evaluation))
    return Dataset(pool, curated, evaluation, names, labels, class_size, licences or {})


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _write(path: Path, data: Dataset) -> None:
    """Writes the pictures as an archive of plain arrays, whole or not at all."""
    arrays = {"facts": _bytes(json.dumps({"class_size": data.class_size, "licences": dict(data.licences)}))}
    for part in PARTS:
        pictures: Pictures = getattr(data, part)
        shades = pictures.pixels // 17
        arrays[f"{part}.pixels"] = np.bitwise_or(shades[..., ::2] << 4, shades[..., 1::2], dtype=np.uint8)
        for column in COLUMNS:
            arrays[f"{part}.{column}"] = _bytes("\n".join(getattr(pictures, column)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _read(path: Path) -> Dataset:
    """Returns the data that `_write` wrote. Raises OSError, or other errors where the archive is damaged."""
    parts = {}
    with np.load(path, allow_pickle=False) as arrays:
        for part in PARTS:
            packed = arrays[f"{part}.pixels"]
            pixels = np.empty((len(packed), SIDE, SIDE), np.uint8)
            pixels[..., ::2], pixels[..., 1::2] = (packed >> 4) * 17, (packed & 15) * 17
            columns = (arrays[f"{part}.{column}"].tobytes().decode().split("\n") for column in COLUMNS)
            parts[part] = Pictures(pixels, *map(tuple, columns))
        facts = json.loads(arrays["facts"].tobytes())
    return judged_by(**parts, class_size=facts["class_size"], licences=facts["licences"])
