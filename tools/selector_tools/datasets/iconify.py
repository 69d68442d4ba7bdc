"""The large data set: the icons of some two hundred open sets, with their names, for studies and GPUs.

It is made as the demo's is, from the sets of one npm package. The pool keeps what sets have: logos, flags, emoji, the
same picture from several hands, and names full of style.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import resvg_py

from selector_tools.datasets import iconify_package as package
from selector_tools.datasets import svg
from selector_tools.datasets.dataset import Dataset, Mask, Pictures, Progress, SourceError, cached, place
from selector_tools.datasets.raster import SIDE, Ink
from selector_tools.datasets.splitting import Rules, caption, concept, split

RECIPE = 1  # must rise with every change that alters the data, as it is part of the cache's key
RULES = Rules(evaluated_families=6, curated_families=4, curated_size=10_000, compared_each=4, class_size=3)
BATCH = 500  # icons are drawn at a time

HELD_OUT = ("carbon", "heroicons", "iconoir", "ion", "lucide", "mingcute", "octicon", "openmoji")
# What is drawn after the held-out sets would give their pictures away, so it is in no split. In meteor-icons, 31 % of
# the pictures of their concepts have a cosine > 0.95 with one of theirs, more than in any other set.
DERIVED = frozenset(
    (
        *("charm", "famicons", "fe", "feather", "heroicons-outline", "heroicons-solid"),
        *("lucide-lab", "meteor-icons", "sidekickicons"),
    )
)
# Sets drawn by one hand are one family, named after its first set; every other set is a family of its own.
HANDS = (
    "bx bxl bxs boxicons",
    "cib cif cil",
    "cryptocurrency cryptocurrency-color",
    "devicon devicon-line devicon-original devicon-plain",
    "emojione emojione-monotone emojione-v1",
    "entypo entypo-social",
    "fa fa-brands fa-regular fa-solid fa6-brands fa6-regular fa6-solid fa7-brands fa7-regular fa7-solid",
    "fluent fluent-color fluent-mdl2",
    "fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast",
    "fontelico brandico",
    "glyphs glyphs-poly",
    "icon-park icon-park-outline icon-park-solid icon-park-twotone",
    "icons8 flat-color-icons la wpf",
    "maki pinhead temaki",
    "material-symbols ic material-symbols-light zmdi",
    "mdi mdi-light memory",
    "mono-icons mi",
    "mynaui vadivam",
    "noto noto-v1",
    "pepicons pepicons-pencil pepicons-pop pepicons-print",
    "pixelarticons majesticons",
    "streamline covid guidance streamline-block streamline-color streamline-cyber streamline-cyber-color "
    "streamline-emojis streamline-flex streamline-flex-color streamline-freehand streamline-freehand-color "
    "streamline-guidance streamline-kameleon-color streamline-logos streamline-pixel streamline-plump "
    "streamline-plump-color streamline-sharp streamline-sharp-color streamline-stickies-color streamline-ultimate "
    "streamline-ultimate-color",
    "thesvg thesvg-color simple-icons",
    "token token-branded",
    "uil uim uis uit",
)
FAMILY = {prefix: sets.split()[0] for sets in HANDS for prefix in sets.split()}

# Names of brands, flags and file types teach nothing about other names.
LOGO_CATEGORIES = frozenset({"Logos", "Programming"})
LOGO_SETS = frozenset(
    (
        *("cif", "circle-flags", "devicon-line", "devicon-original", "fa-brands", "fa6-brands"),
        *("flag", "flagpack", "fontelico"),
    )
)
NO_LOGO_SETS = frozenset({"codicon"})

# Sets under other licences are left out: those that forbid commercial use, and those of programs (GPL).
LICENCES = frozenset(
    (
        *("Apache-2.0", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        *("CC0-1.0", "ISC", "MIT", "MPL-2.0", "OFL-1.1", "Unlicense"),
    )
)


def load(progress: Progress | None = None, cache_dir: Path | None = None, archive: Path | None = None) -> Dataset:
    """Returns the data from the cache, or else fetches the package, draws its icons (a few minutes) and caches them.

    `archive` is the package's file where npm shall not fetch it. `progress(stage, done, total)` is called on the way:
    the stage "read" counts MiB of the package, then "split" pictures. Raises SourceError where the data is not cached
    and the package cannot be had.
    """

    def made() -> Dataset:
        if archive is not None:
            return build(archive, progress=progress)
        with package.fetched() as path:
            return build(path, progress=progress)

    return cached("iconify", _key(), made, cache_dir)


def where(cache_dir: Path | None = None) -> Path:
    """Returns the file that `load` keeps the data in."""
    return place("iconify", _key(), cache_dir)


def _key() -> dict[str, object]:
    return {"recipe": RECIPE, "package": package.VERSION, "resvg": resvg_py.__version__}


def build(
    archive: Path,
    integrity: str = package.INTEGRITY,
    rules: Rules = RULES,
    progress: Progress | None = None,
) -> Dataset:
    """Draws the icons of the package and splits them. The result is the same on every run."""
    report: Progress = progress or (lambda *_: None)
    licences: dict[str, set[str]] = {}
    icons, logos = _draw(_chosen(package.read(archive, integrity, report), licences))
    if missing := sorted(set(HELD_OUT) - licences.keys()):
        raise SourceError(f"{archive} lacks the sets of the evaluation: {', '.join(missing)}")
    held_out = np.isin(icons.families, HELD_OUT)
    stated = {family: " and ".join(sorted(names)) for family, names in licences.items()}
    return split(icons, held_out, logos, rules, stated, report)


def _chosen(
    sets: Iterator[package.IconSet], licences: dict[str, set[str]]
) -> Iterator[tuple[tuple[package.IconSet, Sequence[package.Icon]], list[str]]]:
    """Yields the icons that may be used in batches to draw, and notes the licences of each family."""
    for icon_set in sets:
        if icon_set.licence in LICENCES and icon_set.prefix not in DERIVED:
            licences.setdefault(_family(icon_set), set()).add(icon_set.licence)
            named = [icon for icon in icon_set.icons if caption(icon.name)]
            for start in range(0, len(named), BATCH):
                batch = named[start : start + BATCH]
                yield (icon_set, batch), [icon.svg for icon in batch]


def _draw(batches: Iterator[tuple[tuple[package.IconSet, Sequence[package.Icon]], list[str]]]) -> tuple[Pictures, Mask]:
    """Returns the icons that show something, and which of them are logos, bool [n]."""
    inks: list[Ink] = [np.empty((0, SIDE, SIDE), np.uint8)]
    captions: list[str] = []
    concepts: list[str] = []
    families: list[str] = []
    logos: list[bool] = []
    for (icon_set, batch), rows, ink in svg.draw(batches):
        inks.append(ink)
        families += [_family(icon_set)] * len(rows)
        logos += [_has_logos(icon_set)] * len(rows)
        for row in rows.tolist():
            captions.append(caption(batch[row].name))
            concepts.append(concept(batch[row].plain))
    pictures = Pictures(np.concatenate(inks), tuple(captions), tuple(concepts), tuple(families))
    return pictures, np.array(logos, bool)


def _family(icon_set: package.IconSet) -> str:
    return FAMILY.get(icon_set.prefix, icon_set.prefix)


def _has_logos(icon_set: package.IconSet) -> bool:
    if icon_set.prefix in LOGO_SETS:
        return True
    return icon_set.category in LOGO_CATEGORIES and icon_set.prefix not in NO_LOGO_SETS
