"""What is told of a draw, against numpy's slow way."""

import math

import numpy as np
import pytest
import torch

from selector_server.sampling import Draw, Plan, ScalarScores, chunk_sizes, load_policies
from selector_server.sampling.quality import assess

BOUNDS = (-1.0, 0.0, 0.5, 1.0)


def drawn(values, picks, gain, draw=Draw.SAMPLE, seed=0, policy="independent", ranks=1):
    plan = Plan(chunk_sizes(picks, 1), gain, draw, seed, ranks)
    scores = ScalarScores(torch.as_tensor(values, dtype=torch.float64))
    return load_policies()[policy].pick(scores, plan).indices, plan


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_counts_and_sums_are_those_of_the_scores(count):
    values = np.random.default_rng(count).normal(0, 1, count)
    values[: count // 3] = BOUNDS[1]  # on a bound: counted up to it
    picks, plan = drawn(values, max(1, count // 5), 3.0)
    found = assess(torch.from_numpy(values), picks, plan, BOUNDS)
    chosen = np.zeros(count, bool)
    chosen[picks.numpy()] = True
    for part, scores in ((found.picked, values[chosen]), (found.left, values[~chosen])):
        cumulative = [int((scores <= bound).sum()) for bound in BOUNDS] + [len(scores)]
        assert np.cumsum(part.counts).tolist() == cumulative
        assert part.total == pytest.approx(scores.sum())
    worth = np.sort(values.clip(min=0))[::-1]
    if worth.sum() > 0:
        assert found.top_share == pytest.approx(worth[: math.ceil(count / 5)].sum() / worth.sum())
    else:
        assert found.top_share is None


def test_alike_candidates_are_a_uniform_draw():
    picks, plan = drawn(np.full(500, 0.25), 100, 100.0)
    found = assess(torch.full((500,), 0.25, dtype=torch.float64), picks, plan, BOUNDS)
    assert found.uniform_overlap == 1
    assert found.top_share == pytest.approx(0.2)


def test_scores_that_decide_leave_what_chance_would_share():
    values = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 5000))
    shares = []
    for seed in range(5):
        picks, plan = drawn(values, 1000, 1e6, seed=seed)
        shares.append(assess(values, picks, plan, BOUNDS).uniform_overlap)
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)
    picks, plan = drawn(values, 1000, 1.0)
    assert 0.3 < assess(values, picks, plan, BOUNDS).uniform_overlap < 0.9


def test_draws_of_ranks_are_compared_with_a_uniform_draw_of_ranks():
    picks, plan = drawn(np.zeros(400), 100, 100.0, ranks=4)
    assert assess(torch.zeros(400, dtype=torch.float64), picks, plan, BOUNDS).uniform_overlap == 1


def test_what_cannot_be_told_is_none():
    picks, plan = drawn([-1.0, -2.0, -3.0], 1, 1.0, Draw.TOP_K)
    found = assess(torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64), picks, plan, BOUNDS)
    assert (found.uniform_overlap, found.top_share) == (None, None)
    assert assess(torch.ones(3, dtype=torch.float64), picks, None, BOUNDS).uniform_overlap is None
