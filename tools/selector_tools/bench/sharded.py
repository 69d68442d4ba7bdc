"""`selector bench sharded`: the sharded draw on 1, 2 and 4 gloo processes of this host against one process."""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from statistics import median
from typing import TYPE_CHECKING, Any

from selector_tools.bench import harness

if TYPE_CHECKING:
    from selector_server.sampling import PairScores, Plan

WORLDS = (1, 2, 4)
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Setting:
    """How many candidates of which width there are, and how sub-batches are drawn from them."""

    super_batch: int
    filter_ratio: float
    dim: int
    chunks: int
    repeats: int


@dataclass(frozen=True)
class Measured:
    """What one process measured of a selection: the picks in draw order, their scores, the median seconds by the clock
    and of processor time, and the bytes that the process handed to collectives in a round."""

    picks: list[int]
    scores: list[float]
    seconds: float
    cpu_seconds: float
    bytes_per_round: int = 0


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "sharded",
        help="the joint draw over several processes against one",
        description="Draws the same sub-batch in one process and on 1, 2 and 4 gloo processes of one thread each.",
    )
    parser.set_defaults(handler=run, extra="server")
    parser.add_argument("--super-batch", type=int, default=16384, metavar="B", help="candidates (default %(default)s)")
    parser.add_argument("--filter-ratio", type=float, default=0.8, metavar="F", help="discarded (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, metavar="D", help="embedding width (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=16, metavar="N", help="rounds (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="R", help="timed selections (default %(default)s)")
    harness.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    setting = Setting(arguments.super_batch, arguments.filter_ratio, arguments.dim, arguments.chunks, arguments.repeats)
    print("one process ...", file=sys.stderr)
    alone = _alone(setting)
    shards: dict[int, list[Measured]] = {}
    for world in WORLDS:
        print(f"{world} shards ...", file=sys.stderr)
        shards[world] = _on_shards(world, setting)
    everyone = [measured for group in shards.values() for measured in group]
    same_picks = all(one.picks == alone.picks for one in everyone)
    result = {
        "same_picks": same_picks,
        "same_scores": all(one.scores == alone.scores for one in everyone),
        "seconds": {str(world): max(one.seconds for one in group) for world, group in shards.items()},
        "cpu_seconds": {str(world): max(one.cpu_seconds for one in group) for world, group in shards.items()},
        "bytes_per_round": {str(world): max(one.bytes_per_round for one in group) for world, group in shards.items()},
        "one_process_seconds": alone.seconds,
        "one_process_cpu_seconds": alone.cpu_seconds,
        "processors": len(os.sched_getaffinity(0)),
        **asdict(setting),
    }
    print(json.dumps(result) if arguments.json else _table(result))
    return 0 if same_picks else 1


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"B = {result['super_batch']}, f = {result['filter_ratio']}, D = {result['dim']}, N = {result['chunks']}, "
        f"{result['processors']} processors",
        f"same picks as one process: {'yes' if result['same_picks'] else 'NO'}, "
        f"same scores: {'yes' if result['same_scores'] else 'NO'}",
        f"{'shards':>11} {'seconds':>9} {'CPU seconds a shard':>20} {'bytes a round and shard':>24}",
        f"{'one process':>11} {result['one_process_seconds']:9.3f} {result['one_process_cpu_seconds']:20.3f} {0:24,}",
    ]
    for world, seconds in result["seconds"].items():
        cpu, handed = result["cpu_seconds"][world], result["bytes_per_round"][world]
        lines.append(f"{world:>11} {seconds:9.3f} {cpu:20.3f} {handed:24,}")
    return "\n".join(lines)


def _problem(setting: Setting) -> tuple["PairScores", "Plan"]:
    """Returns all candidates, whose texts are their images with noise, and the draw, alike at every call."""
    import torch  # noqa: PLC0415 - heavy
    from selector_proto.contract import sub_batch_size  # noqa: PLC0415

    from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    models = []
    for scale in (10.0, 25.0):
        image, noise = torch.randn(2, setting.super_batch, setting.dim, generator=generator)
        models.append(Embedded.normalise(image, image + noise, scale, -10.0))
    picks = sub_batch_size(setting.super_batch, setting.filter_ratio)
    plan = Plan(chunk_sizes(picks, setting.chunks), gain=100.0, draw=Draw.SAMPLE, seed=1)
    return PairScores(Criterion.LEARNABILITY, models[0], models[1]), plan


class _Clock:
    """Times the blocks that it guards; the first one warms up and does not count."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._times.append((time.perf_counter() - self._start[0], time.process_time() - self._start[1]))

    def medians(self) -> tuple[float, float]:
        """Returns the median seconds by the clock, and of this process's processor time."""
        seconds, cpu_seconds = zip(*self._times[1:], strict=True)
        return median(seconds), median(cpu_seconds)


def _alone(setting: Setting) -> Measured:
    import torch  # noqa: PLC0415 - heavy

    from selector_server.sampling.policies import Joint  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each shard has one thread, too
    scores, plan = _problem(setting)
    clock = _Clock()
    for _ in range(1 + setting.repeats):
        with clock:
            picks = Joint().pick(scores, plan)
    torch.set_num_threads(threads)
    return Measured(picks.indices.tolist(), picks.scores.tolist(), *clock.medians())


def _on_shards(world: int, setting: Setting) -> list[Measured]:
    """Returns what each of `world` new processes measured."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(world)]
        processes = [
            context.Process(target=_shard, args=(rank, world, f"file://{folder}/store", setting, sender))
            for rank, (_, sender) in enumerate(ends)
        ]
        try:
            for process, (_, sender) in zip(processes, ends, strict=True):
                process.start()
                sender.close()  # a dead shard then ends the wait for it
            return [receiver.recv() for receiver, _ in ends]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _shard(rank: int, world: int, store: str, setting: Setting, sender: Connection) -> None:
    import torch  # noqa: PLC0415 - heavy
    import torch.distributed as dist  # noqa: PLC0415

    from selector_server.sampling import PairScores  # noqa: PLC0415
    from selector_server.sampling.sharded import pick_sharded  # noqa: PLC0415

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    scores, plan = _problem(setting)
    mine = torch.arange(setting.super_batch).tensor_split(world)[rank]
    learner, reference = (model.at(mine) for _, model in scores.models)
    scores = PairScores(scores.criterion, learner, reference)
    handed = _count_bytes(dist)
    clock = _Clock()
    for _ in range(1 + setting.repeats):
        dist.barrier()
        handed.clear()
        with clock:
            picks = pick_sharded(scores, plan, None, TIMEOUT_SECONDS)
    in_rounds = sum(handed[1:-1])  # the agreement before and the total after do not count
    per_round = in_rounds // len(plan.sizes)
    sender.send(Measured(picks.indices.tolist(), picks.scores.tolist(), *clock.medians(), per_round))
    dist.destroy_process_group()


def _count_bytes(dist: Any) -> list[int]:
    """Returns a list to which the bytes of every tensor that is handed to a collective are added from now on."""
    handed: list[int] = []
    all_gather, all_reduce = dist.all_gather, dist.all_reduce

    def counted_gather(tensors: Any, tensor: Any, *arguments: Any, **options: Any) -> Any:
        handed.append(tensor.nbytes)
        return all_gather(tensors, tensor, *arguments, **options)

    def counted_reduce(tensor: Any, *arguments: Any, **options: Any) -> Any:
        handed.append(tensor.nbytes)
        return all_reduce(tensor, *arguments, **options)

    dist.all_gather, dist.all_reduce = counted_gather, counted_reduce
    return handed
