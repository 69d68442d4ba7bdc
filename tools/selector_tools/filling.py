"""Fills a reference cache shard by shard. Which shards are wholly in it is kept in the cache itself, so that the two
cannot part: a run that was killed goes on with the shard that was under way."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from selector_server.encoding.reference_cache import ReferenceCache
from selector_server.errors import SetupError
from selector_tools.embedding import Embedder, Seen
from selector_tools.pools import storage
from selector_tools.pools.captions import Captions
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.pool import Shard
from selector_tools.pools.sharded import DigestsOfNames
from selector_tools.progress import bar_of_shards


@dataclass(frozen=True)
class _Filled:
    """A shard that was wholly embedded: the stamp of its file (see storage.stamp), how many pairs it has, the first
    one's id, and the counts of those that cannot be used, as Exclusions.as_json gives them."""

    stamp: str
    pairs: int
    first_id: str
    exclusions: dict[str, Any]


class _FilledShards:
    """Remembers shards by their names, by how their ids are made, and by where their captions are."""

    def __init__(self, cache: ReferenceCache, captions: Captions) -> None:
        self._cache, self._captions = cache, captions

    def find(self, shard: Shard) -> _Filled | None:
        """Returns what is known of a shard; None if it was not filled, or if its file has changed since."""
        value = self._cache.recall(self._key(shard))
        try:
            filled = None if value is None else _Filled(**json.loads(value))
        except (ValueError, TypeError):  # another version's
            return None
        return filled if filled is not None and filled.stamp == storage.stamp(shard.place) else None

    def keep(self, shard: Shard, filled: _Filled) -> None:
        """Remembers a shard, all of whose usable pairs are in the cache."""
        self._cache.remember(self._key(shard), json.dumps(asdict(filled)).encode())

    def _key(self, shard: Shard) -> bytes:
        how = json.dumps([shard.name, shard.ids, asdict(self._captions)])
        return blake2b(how.encode(errors="surrogateescape"), digest_size=16).digest()


class Count(NamedTuple):
    """How many usable pairs were embedded now and how many were in the cache before, and the id of the first."""

    fresh: int
    known: int
    first_id: str


def fill(
    reference: Embedder,
    shards: Sequence[Shard],
    captions: Captions,
    folder: Path,
    size: int,
    on_first: Callable[[Seen], None],
) -> Count:
    """Embeds what the reference's cache, which is in `folder`, lacks of the shards, `size` pairs at a time. `on_first`
    hears of the first batch, unless its shard is passed over. Raises SelectorError."""
    assert reference.cache is not None
    filled, exclusions = _FilledShards(reference.cache, captions), reference.exclusions
    fresh = known = pairs = 0
    first = first_of_shard = ""
    left: list[Shard] = []
    for shard in shards:
        found = filled.find(shard)
        if found is None or (exclusions.strict and found.exclusions["excluded"]):
            left.append(shard)
            continue
        exclusions.merge(Exclusions.from_json(found.exclusions))
        known, first = known + found.pairs, first or found.first_id
    stamps = {shard.name: storage.stamp(shard.place) for shard in left}
    with bar_of_shards("embed", len(left)) as progress:
        for shard, seen in reference.run_shards(left, size, DigestsOfNames()):
            if isinstance(seen, Exclusions):
                filled.keep(shard, _Filled(stamps[shard.name], pairs, first_of_shard, seen.as_json()))
                pairs, first_of_shard = 0, ""
                progress.shard()
                continue
            if not first:
                on_first(seen)
            first_of_shard = first_of_shard or str(seen.batch.ids[0])
            first = first or first_of_shard
            if not seen.kept:
                limit = f"takes no more after {fresh} new samples: {reference.cache.problem}"
                raise SetupError("--cache", folder, limit)
            fresh, known = fresh + seen.fresh, known + len(seen.batch) - seen.fresh
            pairs += len(seen.batch)
            progress.pairs(len(seen.batch))
    if not exclusions.seen:
        places = ", ".join(shard.place for shard in shards)
        raise SetupError("--pool", places, "holds no pair of image and text")
    return Count(fresh, known, first)
