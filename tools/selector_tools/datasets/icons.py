"""The demo's data set: icons from fonts, with their names.

The pool keeps the raw names. The curated set holds concepts that several families draw, so that the name does tell
what is in the picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from selector_tools.datasets import fonts, raster
from selector_tools.datasets.dataset import Dataset, Mask, Pictures, Progress, cached, place
from selector_tools.datasets.splitting import ALIKE, Rules, caption, concept, split

RECIPE = 1  # must rise with every change that alters the data, as it is part of the cache's key
RULES = Rules(evaluated_families=3, curated_families=2, curated_size=5000)


def load(progress: Progress | None = None, cache_dir: Path | None = None) -> Dataset:
    """Returns the data from the cache, or else draws it from the installed fonts (half a minute) and caches it.

    `progress(stage, done, total)` is called on the way: the stage "draw" counts glyphs, then "split" pictures. Raises
    SourceError where the data is not cached and the fonts are not installed.
    """
    return cached("icons", _key(), lambda: build(progress=progress), cache_dir)


def where(cache_dir: Path | None = None) -> Path:
    """Returns the file that `load` keeps the data in."""
    return place("icons", _key(), cache_dir)


def _key() -> dict[str, object]:
    # Pillow counts because it brings the FreeType that draws the glyphs.
    return {"recipe": RECIPE, "pillow": PIL.__version__, "fonts": fonts.VERSIONS}


def build(
    families: Sequence[fonts.Family] = fonts.FAMILIES,
    curated_size: int = RULES.curated_size,
    progress: Progress | None = None,
) -> Dataset:
    """Draws the icons of `families` and splits them. The result is the same on every run."""
    report: Progress = progress or (lambda *_: None)
    icons, logos = _draw(families, report)
    held_out = np.isin(icons.families, [family.name for family in families if family.held_out])
    licences = {family.name: family.licence for family in families}
    return split(icons, held_out, logos, replace(RULES, curated_size=curated_size), licences, report)


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
    columns = tuple(map(caption, names)), tuple(map(concept, names)), artists
    return Pictures(np.stack(pixels), *columns), np.array(logos)
