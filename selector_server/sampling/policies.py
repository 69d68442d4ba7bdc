"""Policies choose picks from scores: one small class each, and the table of their names.

A built-in policy is a class in this file and a place in BUILT_IN. An installed package adds its own by an entry point,
without a change to this code:

    [project.entry-points."selector_server.policies"]
    mine = "my_package.policies:Mine"
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from enum import Enum
from importlib.metadata import entry_points
from typing import ClassVar

import torch
from torch import Tensor

from selector_server.sampling.joint import WholePool, draw_in_chunks
from selector_server.sampling.noise import Keys, draw_chunk
from selector_server.sampling.plan import Draw, Picks, Plan
from selector_server.sampling.scores import PairScores, Scores

GROUP = "selector_server.policies"


class Needs(Enum):
    """The least that a policy must be given."""

    NOTHING = 0
    SCALARS = 1
    PAIRS = 2


class Policy(ABC):
    """Chooses plan.picks of scores.size candidates.

    A policy that needs PAIRS is given PairScores, any other may be given any Scores. Only policies that need PAIRS are
    planned in more than one chunk.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def pick(self, scores: Scores, plan: Plan) -> Picks:
        """The picks. The same scores and the same plan must give the same picks."""


class Joint(Policy):
    """JEST (Evans et al. 2024, Algorithms 1 and 3): each chunk is drawn given all earlier chunks."""

    name = "joint"
    needs = Needs.PAIRS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        assert isinstance(scores, PairScores)
        return draw_in_chunks(scores, scores.running(), plan, WholePool(scores, plan))


class Independent(Policy):
    """Prioritised sampling on each candidate's own score: JEST with a single chunk."""

    name = "independent"
    needs = Needs.SCALARS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        own = scores.own()
        picks = _drawn_at_once(own * plan.gain, plan)
        return Picks(picks, own[picks], scores.total(picks))


class Uniform(Policy):
    """Every candidate is as likely as any other: the baseline, and what the client falls back to."""

    name = "uniform"
    needs = Needs.NOTHING

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        same = torch.zeros_like(scores.own())
        picks = _drawn_at_once(same, replace(plan, draw=Draw.SAMPLE))
        return Picks(picks, same[picks], 0.0)


BUILT_IN: tuple[type[Policy], ...] = (Joint, Independent, Uniform)


def load_policies() -> dict[str, Policy]:
    """Every policy by its name: the built-in ones, and those that installed packages offer.

    Raises ValueError for an entry point that is not a policy or takes another's name.
    """
    policies: dict[str, Policy] = {policy.name: policy() for policy in BUILT_IN}
    for point in entry_points(group=GROUP):
        try:
            policy = point.load()()
        except Exception as error:  # whatever a foreign package raises while it is imported
            raise ValueError(f"policy {point.name} ({point.value}) cannot be loaded: {error!r}") from error
        if not isinstance(policy, Policy):
            raise ValueError(f"policy {point.name} ({point.value}) is a {type(policy).__name__}, not a Policy")
        if policy.name in policies:
            raise ValueError(f"policy {point.name} ({point.value}) has the name of another, {policy.name!r}")
        policies[policy.name] = policy
    return policies


def _drawn_at_once(logits: Tensor, plan: Plan) -> Tensor:
    """Indices, int64 [b], drawn in one round by the logits, float64 [B]."""
    return draw_chunk(Keys(plan, len(logits), logits.device).of(logits, 0), plan.picks, plan)
