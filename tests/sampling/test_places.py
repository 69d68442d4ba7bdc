"""Candidates that stand for some of a larger super-batch: they are picked as if the others were closed there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_sampling import models

from selector_server.sampling import Criterion, Draw, PairScores, Plan, Policy, chunk_sizes, load_policies
from selector_server.sampling.noise import Keys, gumbel
from selector_server.sampling.policies import pick_open

COUNT, PICKS = 60, 12
ROWS = torch.tensor(sorted(np.random.default_rng(4).choice(COUNT, 25, replace=False).tolist()))


def closed_elsewhere() -> torch.Tensor:
    open_ = torch.zeros(COUNT, dtype=torch.bool)
    open_[ROWS] = True
    return open_


def test_the_noise_is_that_of_the_places():
    plan = Plan((3, 3), 1.0, Draw.SAMPLE, 9)
    some, every = replace(plan, positions=ROWS), torch.zeros(COUNT, dtype=torch.float64)
    for round_ in range(2):
        found = Keys(some, len(ROWS), torch.device("cpu")).of(every[: len(ROWS)], round_)
        assert found.tolist() == Keys(plan, COUNT, torch.device("cpu")).of(every, round_)[ROWS].tolist()
        assert found.tolist() == gumbel(9, round_, ROWS).tolist()


class Foreign(Policy):
    """Somebody's policy, which does not know of closed candidates."""

    name, needs = "foreign", load_policies()["independent"].needs

    def pick(self, scores, plan):
        return load_policies()["independent"].pick(scores, plan)


@pytest.mark.parametrize("explore", [0, 4])
@pytest.mark.parametrize("draw", list(Draw), ids=lambda draw: draw.name)
@pytest.mark.parametrize("policy", ["joint", "independent", "uniform", "foreign"])
def test_picks_are_those_of_the_larger_super_batch(policy, draw, explore):
    policy = Foreign() if policy == "foreign" else load_policies()[policy]
    learner, reference = models(COUNT, 8, 3)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference)
    plan = Plan(chunk_sizes(PICKS - explore, 4), 1.0, draw, 5, explore=explore)
    wanted = pick_open(policy, scores.with_open(closed_elsewhere()), plan)
    found = pick_open(policy, scores.at(ROWS), replace(plan, positions=ROWS))
    assert ROWS[found.indices].tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6, atol=1e-6)
    assert found.total == pytest.approx(wanted.total, rel=1e-6)
