"""`selector reference score` tells what each pair of a pool costs the reference."""

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

from selector_tools.mistakes import any_mistake, exit_status
from selector_tools.reference import flags as shared

COMMAND = "selector reference score"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "score",
        help="own-pair losses and cosines of a pool",
        description="Writes an .npz with ids, loss (nats, the sigmoid loss of each image with its own text) and "
        "cosine of every pair of the pool that can be read.",
    )
    parser.set_defaults(handler=run, extra="server,reference")
    shared.add_encoding(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="an .npz file; must not exist yet")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="reference cache to read from and to fill on the way")
    shared.add_cache_bytes(parser)
    shared.add_samples(parser)


def run(flags: argparse.Namespace) -> int:
    checks = [*shared.encoding_checks(flags), shared.cache_bytes_check(flags), shared.out_check(flags)]
    checks.append((flags.out.suffix != ".npz", "--out", flags.out, "must end in .npz"))
    if any_mistake(COMMAND, checks):
        return 2
    return exit_status(COMMAND, lambda: _score(flags))


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
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    names, values, cosines = (np.concatenate(column) for column in (ids, loss, cosine))
    np.savez(flags.out, fingerprint=np.array(fingerprint), ids=names, loss=values, cosine=cosines)
    shared.tell_excluded(COMMAND, excluded)
    if full:
        shared.tell(COMMAND, f"the cache at {flags.cache} is full; raise --cache-bytes")
    seconds = perf_counter() - began
    if flags.json:
        figures = {"pairs": len(names), "seconds": seconds, "mean_loss": float(values.mean()), "scores": str(flags.out)}
        print(json.dumps(figures | {"exclusions": excluded.as_json()}))
        return
    print(f"{len(names):,} pairs {pace(len(names), seconds)}, mean loss {values.mean():.3f}")
    print(f"scores: {flags.out}")
