"""Opens a pool by its place."""

from selector_tools.pools.arrays import ArrayPool
from selector_tools.pools.captions import Captions
from selector_tools.pools.places import names, shards_at
from selector_tools.pools.pool import Pool
from selector_tools.pools.sharded import Ids, ShardedPool
from selector_tools.pools.webdataset import TarShard


def open_pool(place: str, ids: Ids = "shard/key", captions: Captions | None = None) -> Pool:
    """Opens the pool at `place`, a path or a URL: an .npz file, a shard, a folder of shards, or a pattern with *, ? or
    [], with braces as a shell and the webdataset library expand them, or several of these joined by "::". `ids` says
    how samples of shards are called, and `captions` where their captions are (in .txt). Raises SetupError."""
    if place.endswith(".npz"):
        return ArrayPool(place)
    shards = shards_at(place)
    return ShardedPool(
        [TarShard(name, shard, ids, captions or Captions()) for name, shard in zip(names(shards), shards, strict=True)]
    )
