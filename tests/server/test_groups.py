"""Ranks that select as one, against one process that draws with equal quotas."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from selector_proto.v1 import selector_pb2 as pb
from support.model import POLICIES, samples
from support.processes import eventually
from support.ranks import (
    Asking,
    all_embedded,
    as_ranks,
    ask,
    balanced,
    models_of,
    shares,
    together,
)
from support.wire import embeddings, losses, raw, some_losses

from selector_server.sampling import Draw, Loss, Plan, ScalarScores


def assert_shares(replies, scores, policy, plan, size):
    picks, count = POLICIES[policy].pick(scores, plan), len(replies)
    for reply, (indices, values) in zip(replies, shares(picks, size, count), strict=True):
        assert list(reply.indices) == indices
        assert len(indices) == reply.sub_batch_size == plan.picks // count, "equal quotas"
        assert [count * chunk for chunk in reply.chunk_sizes] == list(plan.sizes)
        np.testing.assert_allclose(reply.scores, values, rtol=1e-4, atol=1e-4)
        assert reply.seed == plan.seed
        assert reply.objective == pytest.approx(picks.total / plan.picks, rel=1e-4)
        assert reply.objective_uniform == pytest.approx(scores.uniform_total(plan.picks) / plan.picks, rel=1e-4)


# What ranks get


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("loss", [pb.LOSS_SIGMOID, pb.LOSS_SOFTMAX])
def test_embeddings_are_picked_as_one_process_would_with_equal_quotas(patient, ranks, loss):
    models = models_of(ranks, 40)
    requests = [embeddings(*m, seed=7 + r, chunks=3, gain=5.0, loss=loss) for r, m in enumerate(models)]
    replies = together(patient, requests)
    scores = all_embedded(models, Loss.SIGMOID if loss == pb.LOSS_SIGMOID else Loss.SOFTMAX)
    assert_shares(replies, scores, "joint", balanced(8, 3, ranks, 7, 5.0), 40)
    alone = [patient.select(embeddings(*m, seed=7, chunks=3, gain=5.0, loss=loss)) for m in models]
    assert [list(one.indices) for one in alone] != [list(one.indices) for one in replies], "pairs go over all ranks"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("draw", [pb.DRAW_SAMPLE, pb.DRAW_TOP_K])
def test_samples_are_encoded_and_picked_as_one(server, bundles, ranks, draw):
    parts = [samples(30, seed) for seed in range(ranks)]
    replies = together(server, [raw(*part, seed=5 + r, draw=draw, gain=3.0) for r, part in enumerate(parts)])
    pixels, ids = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    plan = balanced(6, 6, ranks, 5, 3.0, Draw.SAMPLE if draw == pb.DRAW_SAMPLE else Draw.TOP_K)
    assert_shares(replies, bundles.scores(pixels, ids), "joint", plan, 30)
    assert {reply.weights.version for reply in replies} == {0}
    assert all(reply.HasField("weights") for reply in replies)


@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_with_independent(patient, ranks):
    values = np.random.default_rng(0).random((ranks, 2, 50), dtype=np.float32)
    replies = together(patient, [losses(*v, seed=3, gain=2.0, request_id=f"{ranks}-{r}") for r, v in enumerate(values)])
    learner, reference = (torch.from_numpy(np.concatenate(values[:, side])).double() for side in (0, 1))
    plan = Plan((10 * ranks,), 2.0, Draw.SAMPLE, 3, ranks)
    assert_shares(replies, ScalarScores(learner - reference), "independent", plan, 50)
    assert [reply.request_id for reply in replies] == [f"{ranks}-{rank}" for rank in range(ranks)]


def test_uniform_draws_alike_over_all_ranks(patient):
    replies = together(patient, [some_losses(20, policy="uniform", seed=4) for _ in range(2)])
    picks = POLICIES["uniform"].pick(ScalarScores(torch.zeros(40)), Plan((8,), 100.0, Draw.SAMPLE, 4, 2))
    assert [list(reply.indices) for reply in replies] == [indices for indices, _ in shares(picks, 20, 2)]
    assert not any(reply.scores for reply in replies)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_arrival_is_of_no_matter(patient, order):
    models = models_of(3, 20)
    replies = together(patient, [embeddings(*m, seed=r) for r, m in enumerate(models)], order, pause=0.1)
    assert_shares(replies, all_embedded(models), "joint", balanced(4, 4, 3, 0), 20)
    waits = [replies[rank].stages.group for rank in order]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 0.15 > 0.05 > waits[-1]


def test_groups_and_steps_go_side_by_side(patient):
    models = models_of(2, 20)
    asked = {}
    for group, step in itertools.product("ab", range(1000, 1005)):
        requests = as_ranks([embeddings(*m, seed=step) for m in models], step, group)
        asked[group, step] = Asking(patient, requests, order=(1, 0) if group == "a" else (0, 1))
    for (_, step), asking in asked.items():
        assert_shares(asking.answers(), all_embedded(models), "joint", balanced(4, 4, 2, step), 20)


def test_known_references_of_one_rank_and_new_ones_of_another(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    parts = [samples(20, seed) for seed in (0, 1)]

    def request(rank):
        request = raw(*parts[rank], seed=5)
        request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(20) + 100 * rank))
        return request

    first = together(server, [request(0), request(1)])
    assert [reply.cached_references for reply in first] == [0, 0]
    eventually(lambda: server.select(request(1)).cached_references == 20)
    parts[0] = samples(20, 2)
    ids = [np.arange(20) + 1000, np.arange(20) + 100]
    requests = []
    for rank in (0, 1):
        requests.append(raw(*parts[rank], seed=6))
        requests[-1].selection.sample_ids.integers.CopyFrom(requests[-1].add(ids[rank]))
    mixed = together(server, requests)
    assert [reply.cached_references for reply in mixed] == [0, 20]
    pixels, tokens = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    picks = POLICIES["joint"].pick(bundles.scores(pixels, tokens), balanced(4, 4, 2, 6))
    assert [list(reply.indices) for reply in mixed] == [indices for indices, _ in shares(picks, 20, 2)]


def test_threads_that_ask_for_many_steps_stay_in_step(patient):
    """Two trainers of two ranks each, 30 steps, every rank at its own pace."""
    rng = np.random.default_rng(0)
    pauses = rng.uniform(0, 0.02, (2, 2, 30))
    picked: dict[tuple[str, int, int], list[int]] = {}

    def train(group, rank):
        for step in range(30):
            time.sleep(pauses["ab".index(group), rank, step])
            picked[group, rank, step] = list(
                ask(patient, as_ranks([some_losses(20, seed=step) for _ in range(2)], step, group)[rank]).indices
            )

    threads = [threading.Thread(target=train, args=(group, rank)) for group in "ab" for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(picked) == 120
    for (_, rank, step), indices in picked.items():
        assert indices == picked["a", rank, step]
        assert len(indices) == 4
