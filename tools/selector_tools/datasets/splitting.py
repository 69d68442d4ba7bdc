"""Splits icons into a pool, a curated set and an evaluation, by the concepts of their names and who draws them.

A picture's *concept* is its name without words of style and size: "arrow-circle-left-20-filled" is "arrow
circle left".
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selector_tools.datasets import raster
from selector_tools.datasets.dataset import (
    CLASS_SIZE,
    Dataset,
    Mask,
    Pictures,
    Progress,
    Rows,
    column_of,
    judged_by,
)

STYLE = """
    alt baseline bold duotone fill filled ios large lg light line logo ltr md medium micro mini o original
    outline outlined plain regular round rounded rtl sharp simple sm small solid thin variant wordmark xl xs
"""
_STYLE = frozenset(STYLE.split())

MOST_WORDS = 3  # that a concept may have to be curated or evaluated
CURATED_EACH = 4  # pictures of one concept in the curated set
SLICE = 16384  # pictures of the pool are compared with the evaluation's between two reports of progress

# A picture whose cosine with another is above this nearly repeats it.
ALIKE = {"same": 0.97, "other": 0.98}  # where the other has the same concept, or another one
ALIKE_CURATED = {"same": 0.95, "other": 0.95}
ALIKE_EVALUATED = 0.97


@dataclass(frozen=True)
class Rules:
    """What a data set asks of its splits."""

    evaluated_families: int  # must draw a concept of the evaluation, at least one of them for training
    curated_families: int  # for training must draw a concept of the curated set
    curated_size: int  # pictures at most
    compared_each: int | None = None  # of a concept's pictures are compared for the curated set: None for all
    class_size: int = CLASS_SIZE  # pictures that make a concept of the evaluation a class


def concept(name: str) -> str:
    """Returns the words of a glyph's name without style, size and numbers, sorted as fonts differ in their order."""
    words = sorted(set(re.findall("[a-z]+", name.lower())))
    # A name of nothing but style words means them, as "bold" does in a text editor.
    return " ".join([word for word in words if word not in _STYLE] or words)


def caption(name: str) -> str:
    """Returns the words of a glyph's name as they come, style, size and all."""
    return " ".join(re.findall("[a-z0-9]+", name.lower()))


def at_most(times: int, words: Sequence[str]) -> Mask:
    """Returns bool [n], which is False where the same string was there `times` times before."""
    seen: Counter[str] = Counter()
    seen_before = []
    for word in words:
        seen_before.append(seen[word])
        seen[word] += 1
    return np.array(seen_before, int) < times


def artists(pictures: Pictures, chosen: Mask) -> Rows:
    """Returns for each picture [n] how many families draw its concept, counting only the `chosen` ones (bool [n])."""
    families = defaultdict(set)
    for row in np.flatnonzero(chosen).tolist():
        families[pictures.concepts[row]].add(pictures.families[row])
    return np.array([len(families.get(words, ())) for words in pictures.concepts], np.intp)


def split(
    icons: Pictures, held_out: Mask, logos: Mask, rules: Rules, licences: Mapping[str, str], report: Progress
) -> Dataset:
    """Splits icons, of whose families the `held_out` ones are kept for the evaluation; both masks are bool [n].

    The curated set holds no `logos`, and nothing is trained on that nearly repeats a picture of a held-out family.
    `report` hears how many of the other pictures were compared with those. The result is the same on every run.
    """
    short = np.array([1 <= len(words.split()) <= MOST_WORDS for words in icons.concepts], bool)
    everything = np.ones(len(icons), bool)
    known = (artists(icons, everything) >= rules.evaluated_families) & (artists(icons, ~held_out) >= 1)
    evaluation = icons.take(np.flatnonzero(held_out & known & short))
    evaluation = evaluation.take(raster.distinct(evaluation.pixels, evaluation.concepts, **ALIKE))

    training, rows, judging = ~held_out, np.flatnonzero(~held_out), icons.pixels[held_out]
    for start in range(0, len(rows), SLICE):
        report("split", start, len(rows))
        some = rows[start : start + SLICE]
        training[some] = ~raster.resembles(icons.pixels[some], judging, ALIKE_EVALUATED)
    report("split", len(rows), len(rows))

    rng = np.random.default_rng(0)  # so that a set's first rows are a fair sample of it
    shared = artists(icons, training) >= rules.curated_families
    curated = rng.permutation(np.flatnonzero(training & shared & short & ~logos))
    if rules.compared_each is not None:
        curated = curated[at_most(rules.compared_each, column_of(icons.concepts, curated))]
    curated = curated[raster.distinct(icons.pixels[curated], column_of(icons.concepts, curated), **ALIKE_CURATED)]
    curated = curated[at_most(CURATED_EACH, column_of(icons.concepts, curated))][: rules.curated_size]
    training[curated] = False
    pool = icons.take(rng.permutation(np.flatnonzero(training)))
    return judged_by(evaluation, pool, icons.take(curated), rules.class_size, licences)
