"""`selector reference score` tells what each pair of a pool costs the reference."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared
from selector_tools.reference import ray_flags

if TYPE_CHECKING:
    from selector_tools.embedding import Seen
    from selector_tools.pools.exclusions import Exclusions
    from selector_tools.pools.pool import Known, Shard
    from selector_tools.pools.scores import OfShard
    from selector_tools.pools.webdataset import TarShard

COMMAND = "selector reference score"
_FILES = (".parquet", ".txt", ".csv", ".json", ".tar")  # how no folder's name ends


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "score",
        help="own-pair losses, cosines and embeddings of a pool",
        description="Writes what the reference makes of every pair of the pool that can be read: its loss (nats, the "
        "sigmoid loss of each image with its own text), its cosine and its embeddings, in a folder of Parquet files, "
        "one for each shard. Shards whose file is there are passed over: run it again after an interruption. With an "
        ".npz file as --out, it writes ids, losses and cosines alone, at the end.",
    )
    parser.set_defaults(handler=run, extra="server,reference,pools")
    shared.add_encoding(parser)
    out = "a folder or a URL such as s3://bucket/scores, or an .npz file that must not exist yet"
    parser.add_argument("--out", required=True, metavar="PLACE", help=out)
    again = (
        "also write the WebDataset shards again, in this folder or URL, with a member KEY.ref.npy for each sample: its "
        "embeddings, float16 [2, D]"
    )
    parser.add_argument("--shards", metavar="PLACE", help=again)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="reference cache to read from and to fill on the way")
    shared.add_cache_bytes(parser)
    shared.add_samples(parser)
    ray_flags.add(parser)


def run(flags: argparse.Namespace) -> int:
    alone = flags.out.endswith(".npz")
    checks = [
        *shared.encoding_checks(flags),
        shared.cache_bytes_check(flags),
        (alone and Path(flags.out).exists(), "--out", flags.out, "must not exist yet"),
        (alone and flags.shards is not None, "--shards", flags.shards, "needs a folder as --out"),
        (flags.out.endswith(_FILES), "--out", flags.out, "must be an .npz file, or a folder for a file of each shard"),
        *ray_flags.checks(flags),
    ]
    if any_mistake(COMMAND, checks):
        return 2
    if flags.ray is not None:
        flags.extra += ",ray"
    return exit_status(COMMAND, lambda: (_score if alone else _score_shards)(flags))


def _score_shards(flags: argparse.Namespace) -> None:
    from selector_server.encoding import bundle as bundles  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.pools import members, storage  # noqa: PLC0415
    from selector_tools.pools.exclusions import Exclusions  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import bar_of_shards  # noqa: PLC0415
    from selector_tools.reference.scoring import about, plan  # noqa: PLC0415

    shards, excluded = open_pool(flags.pool, flags.ids, flags.captions).shards(), shared.exclusions(flags)
    began, new, full = perf_counter(), 0, False
    expected = about(bundles.load(flags.reference, "reference"), shards[0].ids)
    planned = plan(shards, flags.out, expected)
    if planned.strangers:
        what = f"{len(planned.strangers)} files in {flags.out} belong to no shard of the pool"
        shared.tell(COMMAND, f"{what}, of which the first is {planned.strangers[0]}")
    done = planned.done
    if flags.shards is not None:
        tars = members.begin(flags.shards, shards, expected)
        for shard in planned.left:  # what is there is of other scores
            storage.remove(storage.joined(flags.shards, members.name_of(shard.name)), "--shards")
    known = _known(flags, done)
    for each in done:
        excluded.merge(Exclusions.from_json(each.exclusions))
    with bar_of_shards("score", len(planned.left)) as progress:

        def on_pairs(count: int) -> None:
            nonlocal new
            new += count
            progress.pairs(count)

        def on_seen(seen: "Seen") -> None:
            nonlocal full
            full = full or not seen.kept
            on_pairs(len(seen.batch))

        if flags.ray is None:
            written = _scored_here(flags, planned.left, excluded, known, on_seen)
        else:
            written = ray_flags.scored(flags, planned.left, expected, excluded, known, on_pairs)
        for of_shard in written:
            done.append(of_shard)
            progress.shard()
    if flags.shards is not None:
        _write_shards(tars, flags.out, flags.shards)
    excluded.check(flags.pool)
    shared.tell_excluded(COMMAND, excluded)
    if full:
        shared.tell(COMMAND, f"the cache at {flags.cache} is full; raise --cache-bytes")
    _tell(flags, done, new, len(planned.left), perf_counter() - began, excluded)


def _known(flags: argparse.Namespace, done: "Sequence[OfShard]") -> "Known":
    """Returns the names of the pairs that are scored, if they could be in two shards."""
    from selector_tools.pools import scores, storage  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.pools.sharded import DigestsOfNames  # noqa: PLC0415

    known = DigestsOfNames()
    if flags.ids == "key":  # a key may be in two shards; names of shards tell all others apart
        for each in done:
            for name in scores.read_ids(storage.joined(flags.out, scores.name_of(each.name))):
                known.add(str(name))
    return known


def _tell(
    flags: argparse.Namespace,
    done: "Sequence[OfShard]",
    new: int,
    new_shards: int,
    seconds: float,
    excluded: "Exclusions",
) -> None:
    """Prints what was scored. Raises SetupError if it is nothing."""
    from selector_server.errors import SetupError  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.progress import pace  # noqa: PLC0415

    pairs = sum(each.pairs for each in done)
    if not pairs:
        raise SetupError("--pool", flags.pool, "holds no pair of image and text")
    mean_loss = sum(each.pairs * each.mean_loss for each in done) / pairs
    if flags.json:
        figures = {"pairs": pairs, "new": new, "seconds": seconds, "mean_loss": mean_loss, "scores": flags.out}
        found = {"shards": len(done), "new_shards": new_shards, "exclusions": excluded.as_json()}
        print(json.dumps(figures | found))
        return
    print(f"{new:,} pairs {pace(new, seconds)}; {pairs:,} in {len(done):,} shards, mean loss {mean_loss:.3f}")
    print(f"scores: {flags.out}")


def _scored_here(
    flags: argparse.Namespace,
    shards: "Sequence[Shard]",
    excluded: "Exclusions",
    known: "Known",
    on_seen: "Callable[[Seen], None]",
) -> "Iterator[OfShard]":
    """Scores shards in this process."""
    from selector_tools.embedding import embedder  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.reference.scoring import score  # noqa: PLC0415

    if not shards:
        return
    folder, size = flags.cache, flags.cache_bytes
    with embedder(flags.reference, flags.device, flags.threads, folder, size, excluded) as reference:
        yield from score(reference, shards, flags.out, flags.batch, known, on_seen)


def _write_shards(shards: "Sequence[TarShard]", scored: str, folder: str) -> None:
    """Writes the shards that are not in `folder` yet, with what was scored."""
    from selector_tools.pools import members, scores, storage  # noqa: PLC0415 - heavy
    from selector_tools.progress import bar  # noqa: PLC0415

    there = {file.rpartition("/")[2] for file in storage.files_in(folder, "--shards")}
    left = [shard for shard in shards if members.name_of(shard.name) not in there]
    with bar("write shards", len(left)) as advance:
        for shard in left:
            members.add(shard, storage.joined(scored, scores.name_of(shard.name)), folder)
            advance(1)


def _score(flags: argparse.Namespace) -> None:
    import numpy as np  # noqa: PLC0415 - heavy, as are the others

    from selector_tools.embedding import embedder  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import pace  # noqa: PLC0415
    from selector_tools.reference.separation import losses  # noqa: PLC0415

    pool, excluded = open_pool(flags.pool, flags.ids, flags.captions), shared.exclusions(flags)
    began, full = perf_counter(), False
    ids, loss, cosine = [], [], []
    folder, size = flags.cache, flags.cache_bytes
    with embedder(flags.reference, flags.device, flags.threads, folder, size, excluded) as reference:
        for seen in reference.run(pool, flags.pool, flags.batch, "score"):
            ids.append(np.asarray(seen.batch.ids))
            loss.append(losses(seen.embedded).astype(np.float32))
            cosine.append((seen.embedded.image * seen.embedded.text).sum(dim=1).numpy())
            full = full or not seen.kept
        fingerprint = reference.model.bundle.fingerprint
    Path(flags.out).parent.mkdir(parents=True, exist_ok=True)
    names, values, cosines = (np.concatenate(column) for column in (ids, loss, cosine))
    np.savez(flags.out, fingerprint=np.array(fingerprint), ids=names, loss=values, cosine=cosines)
    shared.tell_excluded(COMMAND, excluded)
    if full:
        shared.tell(COMMAND, f"the cache at {flags.cache} is full; raise --cache-bytes")
    seconds = perf_counter() - began
    if flags.json:
        figures = {"pairs": len(names), "seconds": seconds, "mean_loss": float(values.mean()), "scores": flags.out}
        print(json.dumps(figures | {"exclusions": excluded.as_json()}))
        return
    print(f"{len(names):,} pairs {pace(len(names), seconds)}, mean loss {values.mean():.3f}")
    print(f"scores: {flags.out}")
