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

from selector_server.sampling.joint import WholePool, draw_in_chunks
from selector_server.sampling.losses import OwnScores
from selector_server.sampling.noise import Keys, check_open, draw_chunk
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
    planned in more than one chunk. A policy that `knows_open` never picks a candidate that is closed in scores.open;
    any other is given the open candidates only, as if there were no more. A policy that draws `in_rounds` draws the
    plan's uniform picks, and keeps picks apart; any other is not asked for that. A class that writes its own `pick`
    must say both anew.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    knows_open: ClassVar[bool] = False
    in_rounds: ClassVar[bool] = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for ability in ("knows_open", "in_rounds"):
            if "pick" in vars(cls) and ability not in vars(cls):
                setattr(cls, ability, False)

    @abstractmethod
    def pick(self, scores: Scores, plan: Plan) -> Picks:
        """The picks. The same scores and the same plan must give the same picks."""


class Joint(Policy):
    """JEST (Evans et al. 2024, Algorithms 1 and 3): each chunk is drawn given all earlier chunks."""

    name = "joint"
    needs = Needs.PAIRS
    knows_open = in_rounds = True

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        assert isinstance(scores, PairScores)
        check_open(scores.open, plan)
        return draw_in_chunks(scores, scores.running(), plan, WholePool(scores, plan))


class Independent(Policy):
    """Prioritised sampling on each candidate's own score: JEST in which no pair counts."""

    name = "independent"
    needs = Needs.SCALARS
    knows_open = in_rounds = True

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        check_open(scores.open, plan)
        plan = replace(plan, sizes=(sum(plan.sizes),))
        picks = draw_in_chunks(scores, OwnScores(scores.own()), plan, WholePool(scores, plan))
        return replace(picks, total=scores.total(picks.indices))


class Uniform(Policy):
    """Every candidate is as likely as any other: the baseline, and what the client falls back to."""

    name = "uniform"
    needs = Needs.NOTHING
    knows_open = True

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        check_open(scores.open, plan)
        same = torch.zeros_like(scores.own())
        logits = same if scores.open is None else same.masked_fill(~scores.open, -torch.inf)
        keys = Keys(replace(plan, draw=Draw.SAMPLE), scores.size, same.device)
        picks = draw_chunk(keys.of(logits, 0), plan.picks, plan)
        return Picks(picks, same[picks], 0.0)


BUILT_IN: tuple[type[Policy], ...] = (Joint, Independent, Uniform)


def pick_open(policy: Policy, scores: Scores, plan: Plan) -> Picks:
    """The policy's picks, by their indices in the super-batch, whether or not it knows which candidates are open.

    With plan.ranks above 1, a policy that does not must find equally many open candidates in every rank's share.
    Raises ValueError if too few are open, and RuntimeError for picks that are no candidates.
    """
    if policy.knows_open:
        return policy.pick(scores, plan)
    plan = replace(plan, positions=None)  # To it, open candidates stand next to each other.
    if scores.open is None:
        return policy.pick(scores, plan)
    check_open(scores.open, plan)
    rows = scores.open.nonzero().flatten()
    picks = policy.pick(scores.at(rows), plan)
    if len(picks.indices) and not 0 <= int(picks.indices.min()) <= int(picks.indices.max()) < len(rows):
        raise RuntimeError(f"policy {policy.name!r} picked {picks.indices.tolist()[:8]} … of {len(rows)} candidates")
    return replace(picks, indices=rows[picks.indices.to(rows.device)])


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
