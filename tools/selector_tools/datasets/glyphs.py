"""Chinese characters as several fonts draw them, with their English definitions: a pool of another kind, for studies.

Characters that share radicals look alike, and many share a definition, so that the pool is full of near misses. It
keeps the raw definitions, and rare characters. The curated set and the evaluation hold characters
that schools teach, by the first sense of their definition. Characters of one first sense are one concept.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
from fontTools.ttLib import TTFont, TTLibError

from selector_tools.datasets import glyph_fonts, npm, raster, unihan
from selector_tools.datasets.dataset import Dataset, Pictures, Progress, SourceError, cached, place
from selector_tools.datasets.splitting import Rules, split

RECIPE = 1  # must rise with every change that alters the data, as it is part of the cache's key
CURATED_GRADE = 6  # the last school grade whose characters are curated
EVALUATED_GRADE = 1  # and the last one whose characters are evaluated
RULES = Rules(evaluated_families=5, curated_families=2, curated_size=8000, compared_each=6, class_size=3)

# A definition with one of these words tells what a character is used for, not what it means.
VAGUE = frozenset(
    (
        *("adjunct", "character", "final", "kwukyel", "name", "names", "numerary", "particle", "phonetic", "radical"),
        *("same", "surname", "used", "variant"),
    )
)


def load(progress: Progress | None = None, cache_dir: Path | None = None, archives: Path | None = None) -> Dataset:
    """Returns the data from the cache, or else fetches the fonts, draws their glyphs (minutes) and caches them.

    `archives` is a folder with the npm packages' files where npm shall not fetch them. `progress(stage, done, total)`
    is called on the way: the stage "draw" counts glyphs, then "split" pictures. Raises SourceError where the data is
    not cached and its sources cannot be had.
    """

    def made() -> Dataset:
        if archives is not None:
            return build(unihan.read(archives), archives, progress=progress)
        with npm.fetched([unihan.PACKAGE, *(family.package for family in glyph_fonts.FAMILIES)]) as folder:
            return build(unihan.read(folder), folder, progress=progress)

    return cached("glyphs", _key(), made, cache_dir)


def where(cache_dir: Path | None = None) -> Path:
    """Returns the file that `load` keeps the data in."""
    return place("glyphs", _key(), cache_dir)


def _key() -> dict[str, object]:
    # Pillow counts because it brings the FreeType that draws the glyphs.
    fonts = {family.name: str(family.package) for family in glyph_fonts.FAMILIES}
    return {"recipe": RECIPE, "pillow": PIL.__version__, "unihan": str(unihan.PACKAGE), "fonts": fonts}


def build(
    characters: Sequence[unihan.Character],
    archives: Path,
    families: Sequence[glyph_fonts.Family] = glyph_fonts.FAMILIES,
    rules: Rules = RULES,
    progress: Progress | None = None,
) -> Dataset:
    """Draws the characters in every family and splits them. The result is the same on every run.

    `archives` is the folder of the npm packages' files.
    """
    report: Progress = progress or (lambda *_: None)
    evaluated = [one for one in characters if one.grade <= EVALUATED_GRADE and _tells(one)]
    drawn: list[tuple[raster.Ink, unihan.Character, str]] = []
    for done, family in enumerate(families):
        report("draw", done, len(families))
        wanted = evaluated if family.held_out else characters
        drawn += [(ink, one, family.name) for one, ink in _draw(family, archives, wanted)]
    report("draw", len(families), len(families))
    if not drawn:
        raise SourceError("the fonts draw none of the characters")
    pixels, chars, names = zip(*drawn, strict=True)
    pictures = Pictures(
        np.stack(pixels),
        tuple(unihan.caption(one.definition) for one in chars),
        tuple(unihan.concept(one.definition) for one in chars),
        names,
    )
    held_out = np.isin(names, [family.name for family in families if family.held_out])
    obscure = np.array([one.grade > CURATED_GRADE or not _tells(one) for one in chars], bool)
    return split(pictures, held_out, obscure, rules, {family.name: family.licence for family in families}, report)


def _tells(character: unihan.Character) -> bool:
    words = unihan.concept(character.definition).split()
    return bool(words) and VAGUE.isdisjoint(words)


def _draw(
    family: glyph_fonts.Family, archives: Path, characters: Sequence[unihan.Character]
) -> list[tuple[unihan.Character, raster.Ink]]:
    """Returns those of the characters that the family has, with their ink. Raises SourceError."""
    content = npm.member(archives, family.package, family.path)
    with TemporaryDirectory() as folder:
        font = Path(folder, "font")
        font.write_bytes(content)
        try:
            with TTFont(font, lazy=True) as tables:
                coded = tables.getBestCmap() or {}
            has = [one for one in characters if ord(one.char) in coded]
            return [(has[index], ink) for index, ink in raster.render(font, [one.char for one in has])] if has else []
        except (OSError, TTLibError, AssertionError, struct.error) as error:
            raise SourceError(f"{family.path} of {family.package} is no font that can be read: {error}") from error
