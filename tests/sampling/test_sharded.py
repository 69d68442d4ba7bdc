"""Shards in real processes on gloo against one process, bit for bit; and what they do when something is wrong."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from support.forked import PROCESSES

from selector_server.sampling import Criterion, Draw, Embedded, Loss, PairScores, Plan, chunk_sizes, sharded
from selector_server.sampling.policies import Joint
from selector_server.sampling.sharded import ShardError, pick_sharded

PLAN = Plan(chunk_sizes(101, 5), 5.0, Draw.SAMPLE, seed=2**64 - 3)
COUNT, TIMEOUT = 1200, 2.0


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in the shards: the last bits of a product depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embedded(width, seed, alike=False):
    image, text = torch.randn(2, COUNT, width, generator=torch.Generator().manual_seed(seed))
    if alike:  # only two kinds of candidates
        image, text = (z[torch.arange(COUNT) % 2] for z in (image, text))
    return Embedded.normalise(image, text + image, 10.0 + seed, -10.0)


def pair_scores(criterion=Criterion.LEARNABILITY, loss=Loss.SIGMOID, **kind):
    """Models of different widths, one of them odd: rows that begin anywhere in memory."""
    return PairScores(criterion, embedded(32, 1, **kind), embedded(17, 2, **kind), loss)


def part(scores, sizes, rank):
    rows = torch.arange(COUNT)[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
    opened = None if scores.open is None else scores.open[rows]
    return replace(scores.at(rows), open=opened)


def closing(scores, *indices):
    """The scores, some of whose candidates are closed, with anything in their place."""
    open_ = torch.ones(COUNT, dtype=torch.bool)
    open_[list(indices)] = False
    for model in (scores.learner, scores.reference):
        model.image[~open_], model.text[~open_] = 7.0, -3.0
    return replace(scores, open=open_)


def shard(rank, world, path, job, arguments, sender):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(path, world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=20))
    sender.send(job(rank, world, *arguments))
    dist.destroy_process_group()


@pytest.fixture
def in_shards(tmp_path):
    """Calls job(rank, world, *arguments) in `world` processes: what each of them returns, None if it died."""
    processes = []

    def run(world, job, *arguments):
        receivers = []
        for rank in range(world):
            receiver, sender = PROCESSES.Pipe(duplex=False)
            path = str(tmp_path / "store")
            processes.append(PROCESSES.Process(target=shard, args=(rank, world, path, job, arguments, sender)))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
        return [received(receiver) for receiver in receivers]

    yield run
    for process in processes:
        process.kill()
        process.join()


class Thread:
    """What a shard exchanges with others that are threads of this process; the mutation check sees what they do."""

    device = torch.device("cpu")

    def __init__(self, rank, all_there, everyones):
        self.rank, self.count = rank, len(everyones)
        self._all_there, self._everyones = all_there, everyones

    def gather(self, what, mine):
        self._everyones[self.rank] = mine
        self._all_there.wait(20)
        everyones = torch.stack(self._everyones)
        self._all_there.wait(20)
        return everyones

    def add(self, what, mine):
        return self.gather(what, mine).sum(dim=0, dtype=mine.dtype)


@pytest.fixture
def in_threads(monkeypatch):
    """Calls job(rank, world) in `world` threads, and returns what each of them returns."""
    here = threading.local()
    monkeypatch.setattr(sharded, "_Shards", lambda *arguments: here.shards)

    def run(world, job):
        all_there, everyones = threading.Barrier(world), [None] * world

        def shard(rank):
            here.shards = Thread(rank, all_there, everyones)
            return job(rank, world)

        with ThreadPoolExecutor(world) as threads:
            return list(threads.map(shard, range(world)))

    return run


@pytest.fixture(params=["in_threads", "in_shards"])
def either_way(request):
    return request.getfixturevalue(request.param)


def received(receiver):
    try:
        return receiver.recv() if receiver.poll(60) else "still running"
    except EOFError:
        return None


def plainly(picks):
    return picks.indices.tolist(), picks.scores.tolist(), picks.total


def attempt(scores, plan, timeout=20.0):
    try:
        return plainly(pick_sharded(scores, plan, None, timeout))
    except ShardError as error:
        return type(error).__name__, str(error)


def even(world):
    return [COUNT // world] * world


RAGGED = {1: [1200], 2: [13, 1187], 3: [601, 0, 599], 4: [1, 530, 7, 662]}


def cases(world):
    """(scores, plan, sizes of shards) to try."""
    for loss in Loss:
        for draw in Draw:
            plan = replace(PLAN, draw=draw)
            yield pair_scores(loss=loss), plan, even(world)
            yield pair_scores(loss=loss), plan, RAGGED[world]
            yield pair_scores(loss=loss, alike=True), plan, RAGGED[world]
            yield pair_scores(loss=loss), replace(plan, sizes=(48, 24, 12, 12), ranks=world), even(world)
    for criterion in (Criterion.LEARNABILITY, Criterion.EASY_REFERENCE, Criterion.HARD_LEARNER):
        yield pair_scores(criterion), replace(PLAN, gain=100.0), even(world)
    yield pair_scores(), replace(PLAN, sizes=(COUNT - 5, 5)), RAGGED[world]
    yield replace(pair_scores(), tile_bytes=5000), PLAN, RAGGED[world]
    yield pair_scores(), replace(PLAN, sizes=(5,) * 12), RAGGED[world]  # so narrow that products mind where rows begin
    yield pair_scores(), replace(PLAN, sizes=(40,)), even(world)
    for loss in Loss:
        few = closing(pair_scores(loss=loss), *range(0, COUNT, 3))
        yield few, PLAN, RAGGED[world]
        yield few, replace(PLAN, sizes=(48, 24, 12, 12), ranks=world), even(world)
    for more in (
        {"pair_criterion": Criterion.EASY_REFERENCE},
        {"pair_criterion": Criterion.NONE, "max_similarity": 0.5},
        {"pair_criterion": Criterion.EASY_REFERENCE, "max_similarity": 0.3},
        {"pair_criterion": Criterion.HARD_LEARNER, "max_similarity": 0.45},
    ):
        ruled = closing(replace(pair_scores(), **more), *range(0, COUNT, 3))
        yield ruled, replace(PLAN, explore=10), RAGGED[world]
        yield ruled, replace(PLAN, sizes=(48, 24, 12, 12), ranks=world, explore=24), even(world)
    alone = replace(pair_scores(), pair_criterion=Criterion.EASY_REFERENCE)
    yield replace(alone, learner=None, learner_losses=alone.own_losses()[0]), PLAN, RAGGED[world]
    yield closing(pair_scores(alike=True), *range(5), *range(700, COUNT)), PLAN, RAGGED[world]
    yield closing(pair_scores(), *range(100, COUNT)), replace(PLAN, sizes=(95, 5)), RAGGED[world]


def all_cases(rank, world):
    return [attempt(part(scores, sizes, rank), plan) for scores, plan, sizes in cases(world)]


@pytest.mark.parametrize(
    ("world", "how"), [(1, "in_shards"), (2, "in_shards"), (3, "in_shards"), (3, "in_threads"), (4, "in_shards")]
)
def test_shards_pick_what_one_process_picks_bit_for_bit(request, world, how):
    want = [plainly(Joint().pick(scores, plan)) for scores, plan, _ in cases(world)]
    everyones = request.getfixturevalue(how)(world, all_cases)
    assert all(got == everyones[0] for got in everyones), "every shard knows all picks"
    for number, (got, expected) in enumerate(zip(everyones[0], want, strict=True)):
        assert got[:2] == expected[:2], f"case {number}"
        assert got[2] == pytest.approx(expected[2], rel=1e-9)


def other(scores):
    """One field of a call changed, by name."""
    wide, double = embedded(33, 1), replace(scores.learner, image=scores.learner.image.double())
    return {
        "criterion": (replace(scores, criterion=Criterion.EASY_REFERENCE), PLAN),
        "loss": (replace(scores, loss=Loss.SOFTMAX), PLAN),
        "draw": (scores, replace(PLAN, draw=Draw.TOP_K)),
        "seed": (scores, replace(PLAN, seed=4)),
        "gain": (scores, replace(PLAN, gain=100.0)),
        "ranks": (scores, replace(PLAN, sizes=(99,), ranks=3)),
        "chunk sizes": (scores, replace(PLAN, sizes=(50, 51))),
        "logit scales": (replace(scores, learner=replace(scores.learner, scale=7.0)), PLAN),
        "logit biases": (replace(scores, reference=replace(scores.reference, bias=7.0)), PLAN),
        "dtypes": (replace(scores, learner=double), PLAN),
        "widths": (replace(scores, learner=wide.at(torch.arange(scores.size))), PLAN),
        "embeddings for each candidate": (replace(scores, reference=scores.reference.at(torch.arange(3))), PLAN),
        "tile bytes": (replace(scores, tile_bytes=1 << 14), PLAN),
        "fused": (replace(scores, fused=True), PLAN),
        "pair criterion": (replace(scores, pair_criterion=Criterion.EASY_REFERENCE), PLAN),
        "max similarity": (replace(scores, max_similarity=0.9), PLAN),
        "explore": (scores, replace(PLAN, explore=3)),
    }


def disagreements(rank, world):
    mine = part(pair_scores(), even(world), rank)
    same = mine, PLAN
    return {name: attempt(*(changed if rank == 1 else same)) for name, changed in other(mine).items()}


def test_shards_that_disagree_fail_together_and_name_the_field(either_way):
    first, *others = either_way(3, disagreements)
    assert others == [first, first]
    for name, (error, message) in first.items():
        assert error == "ShardsDisagree"
        assert message.startswith(f"shards disagree on {name}: shard 0 has "), message
        assert ", shard 1 has " in message
    assert first["seed"][1].endswith(f"shard 0 has {2**64 - 3}, shard 1 has 4")


def impossible_plans(rank, world):
    ragged, plan = part(pair_scores(), RAGGED[world], rank), replace(PLAN, sizes=(COUNT, 1))
    balanced = replace(PLAN, sizes=(12,), ranks=world)
    few = closing(pair_scores(), *range(3, COUNT - 8))
    return [
        attempt(ragged, plan),
        attempt(ragged, balanced),
        attempt(ragged, replace(balanced, ranks=4)),
        attempt(part(few, RAGGED[world], rank), replace(PLAN, sizes=(12,))),
        attempt(part(few, even(world), rank), replace(balanced, sizes=(8,))),
    ]


def test_plans_that_the_shards_cannot_fill_are_refused(either_way):
    first, second = either_way(2, impossible_plans)
    assert first == second
    assert [message for _, message in first] == [
        "the plan has 1201 picks; shards hold 1200 candidates",
        "shards hold 13 to 1187 candidates; must be equal for balanced picks",
        "the plan has 4 ranks; must be 1 or the number of shards, 2",
        "the plan has 12 picks; shards hold 1200 candidates, 11 of them open",
        "shards hold 3, 8 open candidates; each needs 4",
    ]


def killed_midway(rank, world):
    exchange, calls = dist.all_gather, []

    def dying(*arguments, **options):
        calls.append(rank)
        if rank == 1 and len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(*arguments, **options)

    dist.all_gather = dying
    return timed(rank, world)


def timed(rank, world):
    start = time.monotonic()
    return attempt(part(pair_scores(), even(world), rank), PLAN, TIMEOUT), time.monotonic() - start


def never_there(rank, world):
    if rank == 1:
        time.sleep(4 * TIMEOUT)
        return None
    return timed(rank, world)


@pytest.mark.parametrize("job", [killed_midway, never_there])
def test_a_lost_shard_is_an_error_in_time_on_all_others(in_shards, job):
    first, lost, *others = in_shards(4, job)
    assert lost is None
    for rank, ((error, message), seconds) in zip((0, 2, 3), (first, *others), strict=True):
        assert error == "ShardLost", message
        assert message.startswith(f"shard {rank} of 4 is missing another's "), message
        assert seconds < 3.5 * TIMEOUT  # one exchange that went well, one that did not
