"""`selector bench shuffling`: how alike the candidates of a super-batch are, by what reads the shards and how it
shuffles."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness

if TYPE_CHECKING:
    import torch

    from selector_tools.bench.shuffled_readers import Shuffled


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "shuffling",
        help="how alike a super-batch's candidates are, by reader and shuffle setting",
        description="Writes the demo's pool as shards in the order in which a crawl would have stored it, reads one "
        "epoch of them with each library that is installed, in super-batches, and compares the reference's embeddings "
        "of their images: of neighbours, of two at random, and of two at random of the whole pool.",
    )
    parser.set_defaults(handler=run, extra="server,demo")
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="DIR", help="bundle of the reference")
    add("--shards", type=int, default=64, help="that the pool is cut into (default %(default)s)")
    add("--super-batch", type=int, default=640, help="candidates, B (default %(default)s)")
    add("--at-once", type=int, default=16, help="shards that are read in turns (default %(default)s)")
    add("--buffer", type=int, default=5000, help="samples that are mixed (default %(default)s)")
    add("--most", type=int, help="use only so many pictures of the pool, evenly spaced")
    add("--seed", type=int, default=0)
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (not a.reference.is_dir(), "--reference", a.reference, "must be a folder"),
        (not 2 <= a.shards <= 1000, "--shards", a.shards, "must be 2 to 1000"),
        (not 2 <= a.super_batch <= 65536, "--super-batch", a.super_batch, "must be 2 to 65536"),
        (not 1 <= a.at_once <= a.shards, "--at-once", a.at_once, "must be 1 to --shards"),
        (a.buffer < a.super_batch, "--buffer", a.buffer, "must be at least --super-batch"),
        (a.most is not None and a.most < a.super_batch, "--most", a.most, "must be at least --super-batch"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, as are others

    from selector_tools.bench.measuring import describe  # noqa: PLC0415
    from selector_tools.bench.shuffled_readers import READERS, Layout, installed  # noqa: PLC0415
    from selector_tools.datasets import icons  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415
    from selector_tools.study.streams import stored_order  # noqa: PLC0415

    pool = icons.load().pool
    pool = pool.take(stored_order(pool))
    if a.most is not None:
        pool = pool.take(np.linspace(0, len(pool) - 1, a.most).astype(np.int64))
    image = _embedded(a.reference, pool.pixels, pool.captions, folder)
    layout = Layout(folder, np.array_split(np.arange(len(pool)), a.shards), a.super_batch, a.at_once, a.buffer, a.seed)
    there = {name: read for name, read in READERS.items() if installed(name)}
    total, found = image.double().sum(dim=0), []
    of_pool = float((total @ total - len(image)) / (len(image) * (len(image) - 1)))
    with bar("read", len(there)) as advance:
        for name, read in there.items():
            found += [{"reader": name} | _looked_at(one, image, layout.shard_of, of_pool) for one in read(layout)]
            advance(1)
    return {
        "pool_cosine": of_pool,
        "runs": found,
        "not_installed": sorted(READERS.keys() - there.keys()),
        "setting": {
            "pool": f"{len(pool)} icons, in stored order",
            "shards": a.shards,
            "super_batch": a.super_batch,
            "at_once": a.at_once,
            "buffer": a.buffer,
            "seed": a.seed,
            "locality": "(adjacent - random) / (1 - random), means over one epoch's super-batches",
            "sameness": "(random - pool_cosine) / (1 - pool_cosine)",
        },
        **describe("cpu"),
    }


def _embedded(reference: Path, pixels: Any, captions: Any, folder: Path) -> "torch.Tensor":
    """Returns what the reference makes of the images, float32 [n, D] with rows of length one."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from selector_tools.embedding import embedder  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415

    place = folder / "pool.npz"
    np.savez(place, images=pixels[..., None], texts=np.array(captions))
    with embedder(reference, "cpu", 0) as model:
        seen = [one.embedded.image for one in model.run(open_pool(str(place)), str(place), 1024)]
    return torch.nn.functional.normalize(torch.cat(seen).float(), dim=1)


def _looked_at(shuffled: "Shuffled", image: "torch.Tensor", shard_of: Any, of_pool: float) -> dict[str, Any]:
    """Compares the candidates of an epoch's super-batches, as a sidecar does for `Selection.locality`."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from selector_server.sampling.locality import near_duplicates, neighbours  # noqa: PLC0415

    told = []
    for rows in shuffled.super_batches:
        seen, everyone = image[torch.from_numpy(rows)], torch.arange(len(rows))
        alike = neighbours(seen, everyone, len(rows))
        assert alike is not None
        told.append((alike.adjacent, alike.random, near_duplicates(seen, everyone), len(np.unique(shard_of[rows]))))
    adjacent, random, near, shards = np.mean(told, axis=0).tolist()
    return {
        "shuffle": shuffled.setting,
        "adjacent": adjacent,
        "random": random,
        "locality": (adjacent - random) / (1 - random),
        "sameness": (random - of_pool) / (1 - of_pool),
        "near_duplicates": near,
        "shards_in_a_super_batch": shards,
        "super_batches": len(told),
    }


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'reader':<18}{'shuffle':<59}{'locality':>9}{'sameness':>9}{'near-dup.':>10}{'shards':>7}"]
    lines += [
        f"{run['reader']:<18}{run['shuffle']:<59}{run['locality']:>9.3f}{run['sameness']:>9.3f}"
        f"{run['near_duplicates']:>10.1%}{run['shards_in_a_super_batch']:>7.1f}"
        for run in result["runs"]
    ]
    if result["not_installed"]:
        lines.append(f"not installed: {', '.join(result['not_installed'])}")
    return "\n".join(lines)
