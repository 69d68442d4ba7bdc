"""The rounds of the joint draw (Evans et al. 2024, Algorithms 1 and 3): each chunk is drawn given all earlier chunks.

One process and many shards run the same rounds. What differs is how a chunk is found and who holds its embeddings; that
is what a `Pool` answers.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selector_server.sampling.losses.base import Chunk, RunningScores
from selector_server.sampling.noise import Keys, draw_chunk, open_logits
from selector_server.sampling.plan import Picks, Plan
from selector_server.sampling.scores import PairScores


@dataclass(frozen=True)
class Drawn:
    """The m picks of one round: their indices in the whole super-batch, int64 [m], and their scores, float64 [m], both
    in draw order; and the chunk, to be added to the running scores."""

    indices: Tensor
    scores: Tensor
    chunk: Chunk


class Pool(Protocol):
    """The super-batch that a chunk is drawn from. This process holds some of it or all."""

    @property
    def first(self) -> int:
        """The index in the super-batch of the first candidate held here."""

    def draw(self, ranking: Tensor, score: Tensor, size: int) -> Drawn:
        """Draws `size` picks from all candidates, given the keys and the scores of those held here, float64 [n]."""

    def total(self, here: float) -> float:
        """The score of the whole sub-batch, given what the picks held here contribute to it."""


def draw_in_chunks(scores: PairScores, running: RunningScores, plan: Plan, pool: Pool) -> Picks:
    """Draws plan.picks from the pool, of which `scores` and `running` have the candidates held here."""
    device = scores.models[0][1].image.device
    keys = Keys(plan, scores.size, device, pool.first)
    # A closed candidate is as if it were taken already.
    taken = torch.zeros(scores.size, dtype=torch.bool, device=device) if scores.open is None else ~scores.open
    indices: list[Tensor] = []
    drawn_scores: list[Tensor] = []
    for round_, size in enumerate(plan.sizes):
        score = running.scores()
        drawn = pool.draw(keys.of(open_logits(score, taken, plan), round_), score, size)
        taken[drawn.chunk.rows] = True
        indices.append(drawn.indices)
        drawn_scores.append(drawn.scores)
        if round_ + 1 < len(plan.sizes):
            running.add(drawn.chunk)
    total = pool.total(running.finish(drawn.chunk))
    return Picks(torch.cat(indices).to(device), torch.cat(drawn_scores).to(device), total)


@dataclass(frozen=True)
class WholePool:
    """All candidates are held here. The draw ends when `scores.check` raises, which is asked once a round."""

    scores: PairScores
    plan: Plan
    first: int = 0

    def draw(self, ranking: Tensor, score: Tensor, size: int) -> Drawn:
        self.scores.check()
        rows = draw_chunk(ranking, size, self.plan)
        return Drawn(rows, score[rows], Chunk.of(self.scores.models, rows))

    def total(self, here: float) -> float:
        return here
