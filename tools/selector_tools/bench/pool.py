"""`selector bench pool`: `reference score` by one process and on Ray, and what kills on Ray lose or repeat."""

import argparse
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness
from selector_tools.reference.ray_flags import CPUS_OF_A_GPU

if TYPE_CHECKING:
    from selector_tools.pools.pool import Shard
    from selector_tools.pools.scores import OfShard

CORES = 2
_DEVICES = ("cpu", "cuda")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "pool",
        help="offline scoring by one process and on Ray; kills",
        description=f"Scores WebDataset shards of JPEG files with `reference score`: by one process on {CORES} cores, "
        f"and on Ray by one worker of {CORES} cores and by {CORES} of one core each, in turns. Starts do not count: a "
        "rate is that of the second half of the shards. Then it kills a worker, a node and a driver in mid-run, and "
        "counts the pairs that are lost, and those that are twice, once the command has ended or was run again. On a "
        "GPU there is one worker, and nothing is killed.",
    )
    parser.set_defaults(handler=run, extra="server,export,demo,ray")
    parser.add_argument("--open-clip", default="ViT-S-16", metavar="NAME", help="architecture (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels a side (default %(default)s)")
    parser.add_argument("--shards", type=int, default=16, help="of the pool (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=48, help="of a shard (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    a = arguments
    mistakes = [
        (a.image_size < 16 or a.image_size % 16 != 0, "--image-size", a.image_size, "must be a multiple of 16"),
        (a.shards < 8, "--shards", a.shards, "must be at least 8"),
        (a.pairs < 1, "--pairs", a.pairs, "must be at least 1"),
        (a.device not in _DEVICES, "--device", a.device, f"must be {' or '.join(_DEVICES)}"),
        (a.repeats < 1, "--repeats", a.repeats, "must be at least 1"),
    ]
    return harness.run(a, mistakes, partial(_measure, a), _table)


def _measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import ray  # noqa: PLC0415 - heavy, as are the others

    from selector_tools.bench.measuring import describe, in_turns, medians, paired_ratio  # noqa: PLC0415
    from selector_tools.bench.pool_kills import killed  # noqa: PLC0415
    from selector_tools.bench.ray_nodes import nodes  # noqa: PLC0415
    from selector_tools.bench.synthetic_pool import PHOTOS, write_pool  # noqa: PLC0415
    from selector_tools.export.bundle_writer import export_reference  # noqa: PLC0415
    from selector_tools.export.open_clip import architecture  # noqa: PLC0415
    from selector_tools.pools.opening import open_pool  # noqa: PLC0415
    from selector_tools.progress import bar  # noqa: PLC0415

    machine, gpu = describe(a.device), a.device != "cpu"
    threads, most = (CPUS_OF_A_GPU, 1) if gpu else (CORES, CORES)
    with bar("export", 1 + (1 + most) * a.repeats) as advance:
        source = architecture(a.open_clip, folder).build(a.image_size, None)
        reference = export_reference(source, folder / "reference").bundle
        pool = write_pool(folder / "pool", a.shards, a.pairs)
        shards = open_pool(str(pool)).shards()
        advance(1, "score")
        with nodes(threads, gpus=int(gpu)) as cluster:
            scoring = _Scoring(reference, shards, folder, cluster.address, a.device, threads)
            contenders = {"loop": partial(scoring.seconds_of_a_pair, 0)}
            for workers in sorted({1, most}):
                contenders[f"ray_{workers}_worker{'s' * (workers > 1)}"] = partial(scoring.seconds_of_a_pair, workers)
            seconds = in_turns(contenders, a.repeats, on_run=lambda *_: advance(1, "score"))
        kills = None if gpu else killed(reference.path, folder)
    rates = {name: 1 / value for name, value in medians(seconds).items()}
    ratios = {name: paired_ratio(seconds["loop"], seconds[name]) for name in contenders if name != "loop"}
    return {
        "ray_over_loop": min(ratios.values()),
        "ratios": ratios,
        **({} if kills is None else _summed(kills)),
        "samples_per_second": rates,
        "seconds_of_a_pair": seconds,
        "bytes_of_a_pair": scoring.bytes_written / (a.shards * a.pairs),
        "setting": {
            "model": f"{a.open_clip} at {a.image_size} px, fp32",
            "pool": f"{a.shards} shards of {a.pairs} pairs, JPEG of 224 px, quality 90, {PHOTOS} pictures at most",
            "threads": threads,
            "rate": "of the second half of the shards, by when their files were written",
            "ray": ray.__version__,
        },
        **machine,
    }


def _summed(kills: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Returns what was lost or repeated by all kills, and by each."""
    counts = {name: sum(each[name] for each in kills.values()) for name in ("lost", "twice", "shards_made_again")}
    return counts | {"kills": kills}


class _Scoring:
    """Scores all shards anew each time."""

    def __init__(self, reference: Any, shards: Any, folder: Path, address: str, device: str, threads: int) -> None:
        self._reference, self._folder, self._address = reference, folder, address
        self._device, self._threads = device, threads
        self._shards: list[Shard] = list(shards)
        self._runs = self.bytes_written = 0

    def seconds_of_a_pair(self, workers: int) -> float:
        """Scores the pool by so many workers on Ray, or by the loop in this process if there is none."""
        self._runs += 1
        out = self._folder / f"out-{self._runs}"
        of_shards = list((self._on_ray if workers else self._here)(str(out), workers))
        files = [file.stat() for file in out.iterdir()]
        self.bytes_written = sum(file.st_size for file in files)
        # Not when this was told of them: Ray tells of a shard when the next one is there.
        ends = sorted(file.st_mtime_ns for file in files)
        # The last shards do not count: some workers had nothing more to do then.
        first, last = len(ends) // 2, len(ends) - max(workers, 1)
        return (ends[last] - ends[first]) / 1e9 / ((last - first) * of_shards[0].pairs)

    def _here(self, out: str, _: int) -> "Iterator[OfShard]":
        from selector_tools.embedding import embedder  # noqa: PLC0415
        from selector_tools.reference.scoring import score  # noqa: PLC0415

        with embedder(self._reference.path, self._device, self._threads) as reference:
            yield from score(reference, self._shards, out, 256)

    def _on_ray(self, out: str, workers: int) -> "Iterator[OfShard]":
        from selector_tools.reference.ray_scoring import Job, Workers, score_on_ray  # noqa: PLC0415
        from selector_tools.reference.scoring import about  # noqa: PLC0415

        expected = about(self._reference, "shard/key")
        threads = self._threads // workers
        job = Job(self._reference.path, self._device, threads, 256, out, False, expected, os.getcwd())
        yield from score_on_ray(job, self._shards, self._address, Workers(workers, workers))


def _table(result: dict[str, Any]) -> str:
    lines = [f"{name:>16} {rate:8.1f} samples/s" for name, rate in result["samples_per_second"].items()]
    lines.append(f"{'ray_over_loop':>16} {result['ray_over_loop']:8.3f}")
    for name, each in result.get("kills", {}).items():
        told = f"lost {each['lost']}, twice {each['twice']} of {each['pairs']}"
        lines.append(f"killed {name}: {told}; {each['shards_made_again']} of {each['shards_before']} shards made again")
    return "\n".join(lines)
