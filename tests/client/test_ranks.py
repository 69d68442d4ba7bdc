"""Trainers of several ranks, one process each on gloo, that select as one through one sidecar."""

import os
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from selector_client import ModelEmbeddings, Selector
from support.forked import PROCESSES
from support.model import POLICIES
from support.wire import some_embeddings

from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes

SIZE, STEPS, DIES_AT = 40, 4, 2


@pytest.fixture(scope="module")
def patient(start_sidecars):
    with start_sidecars() as start:
        yield start({"group_seconds": 3})


def candidates(rank, step):
    return some_embeddings(SIZE, seed=100 * step + rank)


def train(rank, world, address, group, path, dying, sender):
    """Every step selects, and gathers what all ranks picked, as a trainer's loss would gather embeddings."""
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(path, world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=30))
    lasting = dist.new_group([other for other in range(world) if other != dying])
    settings = {"policy": "joint", "filter_ratio": 0.8, "chunks": 2, "gain": 5.0, "seed": 3 + 10 * rank}
    with Selector(address, group=group, rank=rank, world_size=world, timeout=20, **settings) as selector:
        steps = []
        for step in range(STEPS):
            if rank == dying and step == DIES_AT:
                os._exit(1)
            learner, reference = (ModelEmbeddings(*model) for model in candidates(rank, step))
            started = time.monotonic()
            picked = selector.select_embeddings(learner, reference, step=step)
            seconds = time.monotonic() - started
            alive = dist.group.WORLD if step < DIES_AT or dying is None else lasting
            everyones = [torch.zeros(len(picked.indices), dtype=torch.int64) for _ in range(dist.get_world_size(alive))]
            dist.all_gather(everyones, torch.from_numpy(picked.indices), group=alive)
            steps.append((picked.fallback, [part.tolist() for part in everyones], picked.objective, seconds))
    sender.send(steps)
    os._exit(0)  # gloo's teardown waits for a rank that died


def run(world, server, group, folder, dying=None):
    """What each rank saw of each step; None of the one that died."""
    ranks, receivers = [], []
    for rank in range(world):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        arguments = (rank, world, server.address, group, str(folder / "store"), dying, sender)
        ranks.append(PROCESSES.Process(target=train, args=arguments))
        ranks[-1].start()
        sender.close()
        receivers.append(receiver)
    try:
        return [None if rank == dying else receiver.recv() for rank, receiver in enumerate(receivers)]
    finally:
        for one in ranks:
            one.kill()
            one.join()


def as_one_process(world, step):
    """What a single process picks from all candidates with equal quotas: indices of each rank, and the objective."""
    models = [candidates(rank, step) for rank in range(world)]
    sides = []
    for side in (0, 1):
        image, text = (torch.from_numpy(np.concatenate([model[side][part] for model in models])) for part in (0, 1))
        sides.append(Embedded.normalise(image, text, *models[0][side][2:]))
    sizes = tuple(world * size for size in chunk_sizes(SIZE // 5, 2))
    plan = Plan(sizes, 5.0, Draw.SAMPLE, 3 + step, world)  # rank 0's seed
    picks = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, *sides), plan)
    indices = [(picks.indices[picks.indices // SIZE == rank] - rank * SIZE).tolist() for rank in range(world)]
    return indices, picks.total / plan.picks


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_on_a_batch_that_one_process_would_have_picked(patient, tmp_path, run_name, world):
    seen = run(world, patient, run_name, tmp_path)
    for step in range(STEPS):
        wanted, objective = as_one_process(world, step)
        for rank in range(world):
            fallback, everyones, mine, _ = seen[rank][step]
            assert (fallback, everyones) == ("", wanted), (rank, step)
            assert mine == pytest.approx(objective, rel=1e-4)
        assert {len(indices) for indices in wanted} == {SIZE // 5}, "equal local batches"


@pytest.mark.parametrize("dying", [0, 2])
def test_when_a_rank_dies_the_others_fall_back_together_and_finish(patient, tmp_path, run_name, dying):
    seen = run(4, patient, run_name, tmp_path, dying)
    for rank in range(4):
        if rank == dying:
            continue
        assert [fallback for fallback, *_ in seen[rank]] == [""] * DIES_AT + ["failed_precondition"] * 2
        for step in range(STEPS):
            _, everyones, _, seconds = seen[rank][step]
            assert seconds < 18, "the sidecar ends the wait after 3 s; the client's own timeout is 20"
            assert {len(set(indices)) for indices in everyones} == {SIZE // 5}, "equal local batches"
            if step < DIES_AT:
                assert everyones == as_one_process(4, step)[0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rank": 2, "world_size": 2, "group": "g"}, "rank is 2; must be 0 to world_size - 1"),
        ({"rank": -1}, "rank is -1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"world_size": 2}, "need a name for their group"),
    ],
)
def test_settings_that_cannot_be(settings, text):
    with pytest.raises(ValueError, match=text):
        Selector("localhost:1", **settings)


def test_ranks_must_say_their_step(patient):
    with Selector(patient.address, group="g", world_size=2) as selector, pytest.raises(ValueError, match="the step"):
        selector.select_losses(np.zeros(20, np.float32), np.zeros(20, np.float32))


def test_a_single_rank_selects_alone(patient):
    with Selector(patient.address, group="g", rank=0, world_size=1, on_error="raise") as selector:
        learner, reference = (ModelEmbeddings(*model) for model in candidates(0, 0))
        assert len(selector.select_embeddings(learner, reference).indices) == SIZE // 5
