"""Policies: how picks are chosen from scores. One small class each, listed by name in POLICIES."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from selector_server.sampling.noise import draw_chunk
from selector_server.sampling.plan import Draw, Plan
from selector_server.sampling.scores import PairScores, Scores


class Needs(Enum):
    """The least that a policy must be given."""

    NOTHING = 0
    SCALARS = 1
    PAIRS = 2


@dataclass(frozen=True)
class Picks:
    """`indices` int64 [b] in draw order, no repeats; `scores` float64 [b], each pick's score when it was drawn,
    without the gain; `total`, the sum of S_ij over all pairs of the picks."""

    indices: Tensor
    scores: Tensor
    total: float


class Policy(ABC):
    """Chooses plan.picks of scores.size candidates."""

    name: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def pick(self, scores: Scores, plan: Plan) -> Picks:
        """Same scores and plan, same picks."""


class Joint(Policy):
    """JEST (Evans et al. 2024, Algorithm 1): each chunk is drawn given all earlier chunks.

    A candidate's logit in round n is gain * (S_ii + sum of S_ki + S_ik over the picks k of rounds before n). The
    sums are kept as one accumulator of length B, to which each round adds the strips of the newest chunk only.
    """

    name = "joint"
    needs = Needs.PAIRS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        assert isinstance(scores, PairScores)
        score = scores.own()
        open_ = torch.ones(scores.size, dtype=torch.bool, device=score.device)
        chunks: list[Tensor] = []
        drawn: list[Tensor] = []
        total = 0.0
        for round_, size in enumerate(plan.sizes):
            # Kept finite, so that only what was drawn before is at -inf, whatever scores and gain are.
            logits = (score * plan.gain).clamp(min=torch.finfo(score.dtype).min).masked_fill(~open_, -torch.inf)
            chunk = draw_chunk(logits, size, plan, round_)
            open_[chunk] = False
            chunks.append(chunk)
            drawn.append(score[chunk])
            if round_ + 1 < len(plan.sizes):
                strip = scores.cross(chunk)
                score = score + strip
                within = float(strip[chunk].sum()) / 2  # each pair of the chunk is in it twice
            else:
                within = scores.within(chunk)
            total += float(drawn[-1].sum()) + within
        return Picks(torch.cat(chunks), torch.cat(drawn), total)


class Independent(Policy):
    """Prioritised sampling on each candidate's own score: JEST with a single chunk."""

    name = "independent"
    needs = Needs.SCALARS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        own = scores.own()
        picks = draw_chunk(own * plan.gain, plan.picks, plan, 0)
        return Picks(picks, own[picks], scores.total(picks))


class Uniform(Policy):
    """Every candidate alike: the baseline, and what the client falls back to."""

    name = "uniform"
    needs = Needs.NOTHING

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        same = torch.zeros_like(scores.own())
        picks = draw_chunk(same, plan.picks, Plan(plan.sizes, 1.0, Draw.SAMPLE, plan.seed), 0)
        return Picks(picks, same[picks], 0.0)


POLICIES: dict[str, Policy] = {policy.name: policy for policy in (Joint(), Independent(), Uniform())}
