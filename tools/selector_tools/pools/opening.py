"""Opens a pool by its place."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from selector_server.errors import SetupError
from selector_tools.pools.arrays import ArrayPool
from selector_tools.pools.pool import Pool
from selector_tools.pools.webdataset import TarPool


def open_pool(place: str) -> Pool:
    """Opens the pool at `place`: an .npz file, a .tar shard, a folder of shards, or a pattern such as "shards/*.tar".
    Raises SetupError."""
    path = Path(place)
    if path.suffix == ".npz":
        return ArrayPool(path)
    if path.is_dir():
        return TarPool(_found(place, sorted(path.glob("*.tar"))))
    if not path.exists() and has_magic(place):
        return TarPool(_found(place, [Path(name) for name in sorted(glob(place))]))
    if not path.is_file():
        raise SetupError("--pool", place, "must be an .npz file, a .tar shard, a folder of shards or a pattern")
    return TarPool([path])


def _found(place: str, shards: Sequence[Path]) -> Sequence[Path]:
    if not shards:
        raise SetupError("--pool", place, "holds no .tar shard")
    return shards
