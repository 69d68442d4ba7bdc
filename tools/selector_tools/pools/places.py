"""What the places of a pool stand for: folders, patterns, braces and "::" become the list of their shards."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path, PurePosixPath

from selector_server.errors import SetupError
from selector_tools.pools import storage
from selector_tools.pools.saved import ARROW, PARQUET, data_files

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARDS = (*TARS, PARQUET, ARROW)
PLACES = (
    "an .npz file, a .tar, .tar.gz, .parquet or .arrow shard, a folder of shards, or a pattern such as "
    "'shards/{00000..00099}.tar'"
)
_MOST_SHARDS = 1 << 20
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def shards_at(place: str) -> list[str]:
    """Finds the shards of a place, each once. Raises SetupError."""
    found: list[str] = []
    missing: list[str] = []
    for name in _expanded(place):
        kind = storage.kind(name)
        if kind == "folder":
            found += _in_folder(name)
        elif kind == "file":
            found.append(name)
        elif has_magic(name):
            found += storage.matching(name)
        else:
            missing.append(name)
    if missing:
        more = f" ({len(missing)} shards are not there)" if len(missing) > 1 else ""
        raise SetupError("--pool", missing[0], f"must be {PLACES}{more}")
    if not found:
        raise SetupError("--pool", place, f"holds no shard: {', '.join(SHARDS)}")
    return list(dict.fromkeys(found))


def _in_folder(folder: str) -> list[str]:
    """Returns a folder's shards. Beside tars, img2dataset puts Parquet files that say where the images came from."""
    files = storage.files_in(folder)
    names = {each.rpartition("/")[2] for each in files}
    if "dataset_dict.json" in names:
        raise SetupError("--pool", folder, "is a data set of several splits; name one's folder, or several by ::")
    if "state.json" in names and "dataset_info.json" in names:
        return data_files(folder)
    for suffixes in (TARS, (PARQUET,), (ARROW,)):
        if found := [each for each in files if each.endswith(suffixes)]:
            return found
    return []


def names(shards: Sequence[str]) -> list[str]:
    """Returns what the shards are called in ids: their names without .tar, and as many folders before them as tell
    those apart that have the same name."""
    parts = [_parts(shard) for shard in shards]
    found = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        counts = Counter(found)
        found = [
            name if counts[name] == 1 else "/".join(part[-depth:]) for name, part in zip(found, parts, strict=True)
        ]
    counts = Counter(found)  # a.tar and a.tar.gz of one folder are still called the same
    return [name if counts[name] == 1 else shard for name, shard in zip(found, shards, strict=True)]


def _parts(shard: str) -> tuple[str, ...]:
    """Returns the folders of a shard from the root on, and its name without its suffix."""
    if storage.is_url(shard):
        path = PurePosixPath(shard.partition("://")[2].partition("?")[0])
    else:
        path = PurePosixPath(Path(shard).absolute())
    suffix = next((each for each in sorted(TARS, key=len, reverse=True) if path.name.endswith(each)), path.suffix)
    return (*path.parent.parts, path.name.removesuffix(suffix))


def _expanded(place: str) -> Iterator[str]:
    """Yields the names that "::" and braces stand for."""
    for part in [place] if os.path.exists(place) else place.split("::"):
        if os.path.exists(part):
            yield part
            continue
        known = [part]
        while match := next(filter(None, map(_BRACES.search, known)), None):
            known = list(dict.fromkeys(name for each in known for name in _once(each)))
            if len(known) > _MOST_SHARDS:
                raise SetupError("--pool", place, f"stands for more than {_MOST_SHARDS} shards, by {match[0]}")
        yield from known


def _once(name: str) -> list[str]:
    """Expands the first innermost braces of a name: {00..12} with the width of its ends, or {one,two}. Others are left
    as they are, without their braces."""
    match = _BRACES.search(name)
    if match is None:
        return [name]
    if ends := _RANGE.fullmatch(match[1]):
        first, last = int(ends[1]), int(ends[2])
        width = max(map(len, ends.groups())) if any(end.startswith("0") for end in ends.groups()) else 0
        step = 1 if first <= last else -1
        inner = [f"{number:0{width}}" for number in range(first, last + step, step)[: _MOST_SHARDS + 1]]
    else:
        inner = match[1].split(",")
    return [name[: match.start()] + each + name[match.end() :] for each in inner]
