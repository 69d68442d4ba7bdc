"""Policies: how picks are chosen from scores. One small class each; `registry.py` lists them by name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from selector_server.sampling.losses.base import Chunk
from selector_server.sampling.noise import Keys, draw_chunk, open_logits
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
    without the gain; `total`, the score of the picks taken as one batch."""

    indices: Tensor
    scores: Tensor
    total: float


class Policy(ABC):
    """Chooses plan.picks of scores.size candidates. `needs` PAIRS is given PairScores, others any Scores; only PAIRS
    policies are planned in more than one chunk."""

    name: ClassVar[str]
    needs: ClassVar[Needs]

    @abstractmethod
    def pick(self, scores: Scores, plan: Plan) -> Picks:
        """Same scores and plan, same picks."""


class Joint(Policy):
    """JEST (Evans et al. 2024, Algorithms 1 and 3): each chunk is drawn given all earlier chunks."""

    name = "joint"
    needs = Needs.PAIRS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        assert isinstance(scores, PairScores)
        running = scores.running()
        device = running.scores().device
        keys = Keys(plan, scores.size, device)
        taken = torch.zeros(scores.size, dtype=torch.bool, device=device)
        chunks: list[Tensor] = []
        drawn: list[Tensor] = []
        for round_, size in enumerate(plan.sizes):
            scores.check()
            score = running.scores()
            rows = draw_chunk(keys.of(open_logits(score, taken, plan), round_), size, plan)
            taken[rows] = True
            chunks.append(rows)
            drawn.append(score[rows])
            if round_ + 1 < len(plan.sizes):
                running.add(Chunk.of(scores.models, rows))
        total = running.finish(Chunk.of(scores.models, chunks[-1]))
        return Picks(torch.cat(chunks), torch.cat(drawn), total)


class Independent(Policy):
    """Prioritised sampling on each candidate's own score: JEST with a single chunk."""

    name = "independent"
    needs = Needs.SCALARS

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        own = scores.own()
        picks = _drawn_at_once(own * plan.gain, plan)
        return Picks(picks, own[picks], scores.total(picks))


class Uniform(Policy):
    """Every candidate alike: the baseline, and what the client falls back to."""

    name = "uniform"
    needs = Needs.NOTHING

    def pick(self, scores: Scores, plan: Plan) -> Picks:
        same = torch.zeros_like(scores.own())
        picks = _drawn_at_once(same, replace(plan, draw=Draw.SAMPLE))
        return Picks(picks, same[picks], 0.0)


def _drawn_at_once(logits: Tensor, plan: Plan) -> Tensor:
    return draw_chunk(Keys(plan, len(logits), logits.device).of(logits, 0), plan.picks, plan)
