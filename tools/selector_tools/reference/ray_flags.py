"""Flags that let a Ray cluster score a pool, and the driver's part of it."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from selector_tools.mistakes import Check

if TYPE_CHECKING:
    from selector_tools.pools.exclusions import Exclusions
    from selector_tools.pools.pool import Known, Shard
    from selector_tools.pools.scores import About, OfShard

# Threads of an actor unless --threads says it. A GPU waits for whoever decodes its images.
_CPUS, CPUS_OF_A_GPU = 1, 8
_MOST_OF_A_GPU = 64
_RANGE = re.compile(r"(\d{1,6})(:(\d{1,6})?)?")


def add(parser: Any) -> None:
    """Adds --ray, --workers and --workers-per-gpu."""
    where = (
        "score on a Ray cluster: HOST:PORT of the one that this machine is part of; without an "
        "address the one of RAY_ADDRESS, else one that is started here. --threads is then each worker's "
        f"(default {_CPUS}; {CPUS_OF_A_GPU} for a GPU, shared by its workers)"
    )
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=where)
    many = "workers on Ray: N, MIN:MAX, or MIN: for as many as the cluster has room for (default 1:)"
    parser.add_argument("--workers", type=_workers, metavar="MIN:MAX", help=many)
    shared = "workers on Ray that share a GPU, if one does not keep it busy (default %(default)s); --workers counts all"
    parser.add_argument("--workers-per-gpu", type=int, default=1, metavar="N", help=shared)


def checks(flags: argparse.Namespace) -> list[Check]:
    """Checks them, and others that cannot be where they are."""
    here, there, per_gpu = flags.ray is None, flags.ray is not None, flags.workers_per_gpu
    return [
        (here and flags.workers is not None, "--workers", "given", "needs --ray"),
        (per_gpu != 1 and (here or flags.device == "cpu"), "--workers-per-gpu", per_gpu, "needs --ray and a GPU"),
        (not 1 <= per_gpu <= _MOST_OF_A_GPU, "--workers-per-gpu", per_gpu, f"must be 1 to {_MOST_OF_A_GPU}"),
        (there and flags.cache is not None, "--cache", flags.cache, "is on one machine; must not be given with --ray"),
        (there and flags.out.endswith(".npz"), "--out", flags.out, "must be a folder or a URL with --ray"),
        (there and ":" in flags.device, "--device", flags.device, "must have no number with --ray, which chooses it"),
    ]


def scored(
    flags: argparse.Namespace,
    shards: "Sequence[Shard]",
    expected: "About",
    excluded: "Exclusions",
    known: "Known",
    on_pairs: Callable[[int], None],
) -> "Iterator[OfShard]":
    """Scores shards on the cluster, as `ray_scoring` does, and counts what cannot be used. Raises SetupError if an id
    is in two shards: their workers cannot tell, and `known` can."""
    from selector_server.errors import SetupError  # noqa: PLC0415 - heavy, as are the others
    from selector_tools.pools import scores, storage  # noqa: PLC0415
    from selector_tools.pools.exclusions import Exclusions  # noqa: PLC0415
    from selector_tools.reference.ray_scoring import Job, Workers, score_on_ray  # noqa: PLC0415

    if not shards:
        return
    per_gpu = flags.workers_per_gpu
    threads = flags.threads or (_CPUS if flags.device == "cpu" else max(1, CPUS_OF_A_GPU // per_gpu))
    job = Job(flags.reference, flags.device, threads, flags.batch, flags.out, flags.strict, expected, os.getcwd())
    fewest, most = flags.workers or (1, None)
    for of_shard in score_on_ray(job, shards, flags.ray, Workers(fewest, most, per_gpu)):
        if flags.ids == "key":
            for name in scores.read_ids(storage.joined(flags.out, scores.name_of(of_shard.name))):
                if not known.add(str(name)):
                    limit = f"{name} is in {of_shard.name} and in another shard; must be shard/key"
                    raise SetupError("--ids", "key", limit)
        excluded.merge(Exclusions.from_json(of_shard.exclusions))
        on_pairs(of_shard.pairs)
        yield of_shard


def _workers(text: str) -> tuple[int, int | None]:
    """Reads --workers. Raises ArgumentTypeError."""
    found = _RANGE.fullmatch(text)
    fewest = int(found[1]) if found else 0
    most = None if found is None or (found[2] and not found[3]) else int(found[3] or found[1])
    if not fewest or (most is not None and most < fewest):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers; must be N, MIN:MAX or MIN:, N at least 1")
    return fewest, most
