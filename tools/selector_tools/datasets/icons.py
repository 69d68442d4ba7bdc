"""The demo's data set: icons from fonts, with their names.

The pool keeps the raw names. The curated set holds concepts that several families draw, so that the name does tell
what is in the picture.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL

from selector_tools.datasets import fonts, raster
from selector_tools.datasets.dataset import Dataset, Mask, Pictures, Progress, cached, column_of, judged_by
from selector_tools.datasets.splitting import artists, at_most, concept

RECIPE = 1  # must rise with every change that alters the data, as it is part of the cache's key
MOST_WORDS = 3  # that a concept may have to be curated or evaluated
EVALUATED_FAMILIES = 3  # must draw a concept of the evaluation, at least one of them for training
CURATED_FAMILIES = 2  # for training must draw a concept of the curated set
CURATED_EACH = 4  # pictures of one concept in the curated set
CURATED_SIZE = 5000

# A picture whose cosine with another is above this nearly repeats it.
ALIKE = {"same": 0.97, "other": 0.98}  # where the other has the same concept, or another one
ALIKE_CURATED = {"same": 0.95, "other": 0.95}
ALIKE_EVALUATED = 0.97


def load(progress: Progress | None = None, cache_dir: Path | None = None) -> Dataset:
    """Returns the data from the cache, or else draws it from the installed fonts (half a minute) and caches it.

    `progress(stage, done, total)` is called on the way: the stage "draw" counts glyphs, then "split" its steps. Raises
    DemoFontsError where the data is not cached and the fonts are not installed.
    """
    # Pillow counts because it brings the FreeType that draws the glyphs.
    key = {"recipe": RECIPE, "pillow": PIL.__version__, "fonts": fonts.VERSIONS}
    return cached("icons", key, lambda: build(progress=progress), cache_dir)


def build(
    families: Sequence[fonts.Family] = fonts.FAMILIES,
    curated_size: int = CURATED_SIZE,
    progress: Progress | None = None,
) -> Dataset:
    """Draws the icons of `families` and splits them. The result is the same on every run."""
    report: Progress = progress or (lambda *_: None)
    icons, logos = _draw(families, report)
    held_out = np.isin(icons.families, [family.name for family in families if family.held_out])
    short = np.array([1 <= len(words.split()) <= MOST_WORDS for words in icons.concepts], bool)

    report("split", 0, 3)
    everything = np.ones(len(icons), bool)
    known = (artists(icons, everything) >= EVALUATED_FAMILIES) & (artists(icons, ~held_out) >= 1)
    evaluation = icons.take(np.flatnonzero(held_out & known & short))
    evaluation = evaluation.take(raster.distinct(evaluation.pixels, evaluation.concepts, **ALIKE))

    report("split", 1, 3)
    training = ~held_out
    training[training] = ~raster.resembles(icons.pixels[training], icons.pixels[held_out], ALIKE_EVALUATED)

    report("split", 2, 3)
    rng = np.random.default_rng(0)  # so that a set's first rows are a fair sample of it
    shared = artists(icons, training) >= CURATED_FAMILIES
    curated = rng.permutation(np.flatnonzero(training & shared & short & ~logos))
    curated = curated[raster.distinct(icons.pixels[curated], column_of(icons.concepts, curated), **ALIKE_CURATED)]
    curated = curated[at_most(CURATED_EACH, column_of(icons.concepts, curated))][:curated_size]
    training[curated] = False

    report("split", 3, 3)
    return judged_by(
        evaluation,
        pool=icons.take(rng.permutation(np.flatnonzero(training))),
        curated=icons.take(curated),
    )


def _draw(families: Sequence[fonts.Family], report: Progress) -> tuple[Pictures, Mask]:
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
    return Pictures(np.stack(pixels), captions, tuple(map(concept, names)), artists), np.array(logos)
