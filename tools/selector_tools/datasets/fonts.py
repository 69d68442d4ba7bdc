"""Where the demo's pictures come from: icon fonts inside small wheels, and the names of their glyphs.

The wheels are read through their file listings and never imported: one would load Qt, the others tkinter.
Their licences are listed in LICENSES.md, next to this file.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from selector_tools.datasets.dataset import SourceError

VERSIONS = {
    "qtawesome": "1.4.2",
    "tkinter-icons-bs": "1.1.1",
    "tkinter-icons-devicon": "1.1.1",
    "tkinter-icons-eva": "1.1.1",
    "tkinter-icons-fa": "1.1.1",
    "tkinter-icons-fluent": "1.1.1",
    "tkinter-icons-gmi": "1.1.2",
    "tkinter-icons-ion": "1.1.1",
    "tkinter-icons-lucide": "1.1.1",
    "tkinter-icons-mat": "1.1.2",
    "tkinter-icons-remix": "1.1.1",
    "tkinter-icons-rpga": "1.1.1",
    "tkinter-icons-simple": "1.1.1",
    "tkinter-icons-typicons": "1.1.1",
    "tkinter-icons-weather": "1.1.1",
}
"""For each distribution the one version whose glyphs the demo's splits were made from."""


@dataclass(frozen=True)
class Font:
    """One font file and the map from names to code points; both paths are as the distribution lists them."""

    distribution: str
    path: str
    names: str
    prefix: str = ""  # a regular expression for what names begin with and what tells nothing of the picture
    logos: bool = False  # names of brands teach nothing about other names


@dataclass(frozen=True)
class Family:
    """Fonts drawn by one hand: only other families can tell what a name looks like in general."""

    name: str
    licence: str  # of the pictures as the wheels state it; parts may have different ones
    fonts: tuple[Font, ...]
    held_out: bool = False  # kept whole for the evaluation


def _tk(pack: str, path: str, names: str = "glyphmap.json", prefix: str = "", logos: bool = False) -> Font:
    root = f"tkinter_icons_{pack}"
    return Font(f"tkinter-icons-{pack}", f"{root}/{path}", f"{root}/{names}", prefix, logos)


def _qt(font: str, version: str, logos: bool = False) -> Font:
    root = f"qtawesome/fonts/{font}"
    return Font("qtawesome", f"{root}-{version}.ttf", f"{root}-charmap-{version}.json", logos=logos)


FAMILIES = (
    Family("bs", "MIT", (_tk("bs", "assets/bootstrap.ttf", "assets/glyphmap.json"),)),
    Family("codicon", "CC-BY-4.0", (_qt("codicon", "0.0.36"),)),
    Family("devicon", "MIT", (_tk("devicon", "fonts/devicon.ttf", logos=True),)),
    Family("elusive", "OFL-1.1", (_qt("elusiveicons-webfont", "2.0"),)),
    Family("eva", "MIT", (_tk("eva", "fonts/eva-icons.ttf"),)),
    Family(
        "fa",
        "CC-BY-4.0, OFL-1.1 and MIT",
        (
            _tk("fa", "fonts/fa-solid-900.ttf", "glyphmap-solid.json"),
            _tk("fa", "fonts/fa-regular-400.ttf", "glyphmap-regular.json"),
            _tk("fa", "fonts/fa-brands-400.ttf", "glyphmap-brands.json", logos=True),
            _qt("fontawesome6-solid-webfont", "6.7.2"),
            _qt("fontawesome6-regular-webfont", "6.7.2"),
            _qt("fontawesome6-brands-webfont", "6.7.2", logos=True),
            _qt("fontawesome5-solid-webfont", "5.15.4"),
            _qt("fontawesome5-regular-webfont", "5.15.4"),
            _qt("fontawesome5-brands-webfont", "5.15.4", logos=True),
        ),
    ),
    Family(
        "fluent",
        "MIT",
        tuple(
            _tk("fluent", f"fonts/FluentSystemIcons-{cut}.ttf", f"glyphmap-{cut.lower()}.json", "ic-fluent-")
            for cut in ("Regular", "Filled", "Light")
        ),
    ),
    Family(
        "gmi",
        "Apache-2.0",
        (
            _tk("gmi", "fonts/MaterialIcons-Regular.ttf", "glyphmap-baseline.json"),
            _tk("gmi", "fonts/MaterialIconsOutlined-Regular.otf", "glyphmap-outlined.json"),
            _tk("gmi", "fonts/MaterialIconsRound-Regular.otf", "glyphmap-round.json"),
            _tk("gmi", "fonts/MaterialIconsSharp-Regular.otf", "glyphmap-sharp.json"),
        ),
    ),
    Family("ion", "MIT", (_tk("ion", "fonts/ionicons.ttf", prefix="(ion-)?(ios-|android-)?"),), held_out=True),
    Family("lucide", "ISC", (_tk("lucide", "fonts/lucide.ttf", prefix="icon-"),), held_out=True),
    Family(
        "mdi",
        "Apache-2.0",
        (
            _tk("mat", "fonts/materialdesignicons-webfont.ttf"),
            _qt("materialdesignicons6-webfont", "6.9.96"),
            _qt("materialdesignicons5-webfont", "5.9.55"),
        ),
    ),
    Family("phosphor", "MIT", (_qt("phosphor", "1.3.0"),)),
    Family("remix", "Apache-2.0", (_tk("remix", "fonts/remixicon.ttf"), _qt("remixicon", "2.5.0")), held_out=True),
    Family("rpga", "MIT", (_tk("rpga", "fonts/rpgawesome-webfont.ttf"),)),
    Family("simple", "CC0-1.0 and MIT", (_tk("simple", "fonts/SimpleIcons.ttf", logos=True),)),
    Family("typicons", "CC-BY-SA-4.0 and OFL-1.1", (_tk("typicons", "fonts/typicons.ttf"),)),
    Family("weather", "OFL-1.1, CC-BY-3.0 and MIT", (_tk("weather", "fonts/weathericons-regular-webfont.ttf"),)),
)


def locate(font: Font, path: str) -> Path:
    """Returns where `path` of the font's distribution is on disk.

    Raises SourceError where the distribution is missing, is another version or lacks the file.
    """
    wanted = VERSIONS[font.distribution]
    try:
        found = metadata.distribution(font.distribution)
    except metadata.PackageNotFoundError:
        problem = "is not installed"
    else:
        for file in found.files or () if found.version == wanted else ():
            if file.as_posix() == path:
                return Path(str(file.locate()))
        problem = f"lacks {path}" if found.version == wanted else f"is installed as version {found.version}"
    raise SourceError(
        f"the demo's icons come from {font.distribution} {wanted}, which {problem}: pip install 'jest-selector[demo]'"
    )


def glyphs(font: Font) -> Iterator[tuple[int, str]]:
    """Yields each code point of the font once, in order, with its plainest name (words joined by - or _)."""
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, code in json.loads(locate(font, font.names).read_text("utf-8")).items():
        # Maps hold hexadecimal text ("f2ba", "0xf2ba") or plain numbers.
        aliases[code if isinstance(code, int) else int(code, 16)].append(re.sub(f"^{font.prefix}", "", name))
    for code, names in sorted(aliases.items()):
        # Most aliases add a prefix ("mdi-x" for "x") or a code of another service ("yahoo-13" for "snow").
        yield code, min(names, key=lambda name: (any(map(str.isdigit, name)), len(name), name))
