"""Opens a pool by its place."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from selector_server.errors import SetupError
from selector_tools.pools.arrays import ArrayPool
from selector_tools.pools.captions import Captions
from selector_tools.pools.pool import Pool
from selector_tools.pools.webdataset import Ids, TarPool

PLACES = "an .npz file, a .tar or .tar.gz shard, a folder of shards, or a pattern such as 'shards/{00000..00099}.tar'"
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MOST_SHARDS = 1 << 20
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_pool(place: str, ids: Ids = "shard/key", captions: Captions | None = None) -> Pool:
    """Opens the pool at `place`: an .npz file, a shard, a folder of shards, or a pattern with *, ? or [], with braces
    as a shell and the webdataset library expand them, or several of these joined by "::". `ids` says how samples of
    shards are called, and `captions` where their captions are (in .txt). Raises SetupError."""
    if Path(place).suffix == ".npz":
        return ArrayPool(Path(place))
    shards = _shards(place)
    return TarPool(shards, names(shards), ids, captions)


def names(shards: Sequence[Path]) -> list[str]:
    """Returns what the shards are called in ids: their names without .tar, and as many folders before them as tell
    those apart that have the same name."""
    parts = [(*shard.absolute().parent.parts, _stem(shard)) for shard in shards]
    found = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        counts = Counter(found)
        found = [
            name if counts[name] == 1 else "/".join(part[-depth:]) for name, part in zip(found, parts, strict=True)
        ]
    counts = Counter(found)  # a.tar and a.tar.gz of one folder are still called the same
    return [name if counts[name] == 1 else str(shard) for name, shard in zip(found, shards, strict=True)]


def _shards(place: str) -> list[Path]:
    """Finds the shards of a place, each once."""
    found: list[Path] = []
    missing: list[str] = []
    for name in _expanded(place):
        path = Path(name)
        if path.is_dir():
            found += sorted(each for each in path.iterdir() if each.name.endswith(_SUFFIXES))
        elif path.is_file():
            found.append(path)
        elif has_magic(name):
            found += map(Path, sorted(glob(name)))
        else:
            missing.append(name)
    if missing:
        more = f" ({len(missing)} shards are not there)" if len(missing) > 1 else ""
        raise SetupError("--pool", missing[0], f"must be {PLACES}{more}")
    if not found:
        raise SetupError("--pool", place, f"holds no shard: {', '.join(_SUFFIXES)}")
    return list(dict.fromkeys(found))


def _expanded(place: str) -> Iterator[str]:
    """Yields the names that "::" and braces stand for."""
    for part in [place] if Path(place).exists() else place.split("::"):
        if Path(part).exists():
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


def _stem(shard: Path) -> str:
    suffix = next((each for each in sorted(_SUFFIXES, key=len, reverse=True) if shard.name.endswith(each)), None)
    return shard.stem if suffix is None else shard.name.removesuffix(suffix)
