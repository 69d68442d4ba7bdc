"""Opens a pool by its place."""

from selector_tools.pools import storage
from selector_tools.pools.arrays import ArrayPool
from selector_tools.pools.captions import Captions
from selector_tools.pools.places import names, shards_at
from selector_tools.pools.pool import Pool
from selector_tools.pools.saved import ARROW, PARQUET
from selector_tools.pools.sharded import Ids, PairShard, ShardedPool
from selector_tools.pools.webdataset import TarShard


def open_pool(place: str, ids: Ids = "shard/key", captions: Captions | None = None) -> Pool:
    """Opens the pool at `place`, a path or a URL: an .npz file, a shard (a tar, a Parquet or an Arrow file), a folder
    of shards, or a pattern with *, ? or [], with braces as a shell and the webdataset library expand them, or several
    of these joined by "::". `ids` says how samples of shards are called, and `captions` where their captions are (in
    .txt, or in the first column that may have them). Raises SetupError."""
    if storage.bare(place).endswith(".npz"):
        return ArrayPool(place)
    where, shards = captions or Captions(), shards_at(place)
    return ShardedPool([_shard(name, shard, ids, where) for name, shard in zip(names(shards), shards, strict=True)])


def _shard(name: str, place: str, ids: Ids, captions: Captions) -> PairShard:
    if not storage.bare(place).endswith((PARQUET, ARROW)):
        return TarShard(name, place, ids, captions)
    from selector_tools.pools.tables import TableShard  # noqa: PLC0415 - tars need no pyarrow

    return TableShard(name, place, ids, captions)
