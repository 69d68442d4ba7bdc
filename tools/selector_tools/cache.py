"""`selector cache` fills the reference cache before a training run, and tells what is in one."""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

if TYPE_CHECKING:
    from selector_tools.embedding import Embedder, Seen

FILL, STAT = "selector cache fill", "selector cache stat"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("cache", help="fill the reference cache, or tell what is in it")
    leaves = parser.add_subparsers(dest="cache_verb", required=True, metavar="VERB")
    fill = leaves.add_parser(
        "fill",
        help="embed what the cache lacks",
        description="Embeds the pairs of a pool with a reference and keeps the embeddings, so that a sidecar does not "
        "have to. Shards and pairs that are in the cache already are passed over: run it again after an interruption.",
    )
    fill.set_defaults(handler=run_fill, extra="server,reference")
    fill.add_argument("--cache", type=Path, required=True, metavar="DIR", help="the cache's folder")
    shared.add_encoding(fill)
    shared.add_samples(fill)
    shared.add_cache_bytes(fill)
    stat = leaves.add_parser("stat", help="references, entries and bytes of a cache")
    stat.set_defaults(handler=run_stat, extra="server")
    stat.add_argument("cache", type=Path, metavar="DIR", help="the cache's folder")
    stat.add_argument("--json", action="store_true", help="print one JSON object")


def run_fill(flags: argparse.Namespace) -> int:
    if any_mistake(FILL, [*shared.encoding_checks(flags), shared.cache_bytes_check(flags)]):
        return 2
    return exit_status(FILL, lambda: _fill(flags))


def _fill(flags: argparse.Namespace) -> None:
    from selector_tools.embedding import embedder  # noqa: PLC0415 - not on a trainer, as all that follows
    from selector_tools.filling import fill  # noqa: PLC0415
    from selector_tools.pools.captions import Captions  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import pace  # noqa: PLC0415

    pool, began, excluded = open_pool(flags.pool, flags.ids, flags.captions), perf_counter(), shared.exclusions(flags)
    folder, size, captions = flags.cache, flags.cache_bytes, flags.captions or Captions()
    with embedder(flags.reference, flags.device, flags.threads, folder, size, excluded) as reference:
        tell = partial(_tell_other_ids, flags, reference)
        fresh, known, called = fill(reference, pool.shards(), captions, folder, flags.batch, tell)
    excluded.check(flags.pool)
    seconds = perf_counter() - began
    shared.tell_excluded(FILL, excluded)
    if flags.json:
        figures = {"encoded": fresh, "known": known, "seconds": seconds, "first_id": called}
        print(json.dumps(figures | {"exclusions": excluded.as_json()}))
        return
    took = pace(fresh + known, seconds)
    print(f"encoded {fresh:,}, known {known:,}, excluded {excluded.count:,} of {excluded.seen:,} {took}")
    print(f"a trainer must send the same ids, of which the first is {called}")


def _tell_other_ids(flags: argparse.Namespace, reference: "Embedder", seen: "Seen") -> None:
    """Warns if the cache knows the first pairs, but by the other kind of ids."""
    from selector_server.encoding.reference_cache import string_key  # noqa: PLC0415 - not on a trainer

    other = seen.batch.other_ids
    if reference.cache is None or other is None or seen.fresh < len(seen.batch):
        return
    count = int(reference.cache.find([string_key(name) for name in other]).known.sum())
    if count:
        kind = "key" if flags.ids == "shard/key" else "shard/key"
        what = f"the cache knows {count:,} of the first {len(other):,} pairs as {other[0]}, and none as"
        shared.tell(FILL, f"{what} {seen.batch.ids[0]}; did you mean --ids {kind}?")


def run_stat(flags: argparse.Namespace) -> int:
    return exit_status(STAT, lambda: _stat(flags.cache, flags.json))


def _stat(folder: Path, as_json: bool) -> None:
    from selector_server.encoding.reference_cache import stat  # noqa: PLC0415 - not on a trainer

    found = stat(folder)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"{'entries':>12}{'width':>7}{'decoder':>9}  {'fingerprint':<17} reference")
    for held in found.references:
        print(f"{held.entries:>12,}{held.width:>7}{held.decoder:>9}  {held.fingerprint[:16]:<17} {held.name}")
    share = found.used_bytes / found.max_bytes
    print(f"{found.used_bytes / 2**20:,.1f} MiB of {found.max_bytes / 2**20:,.1f} MiB ({share:.1%})")
