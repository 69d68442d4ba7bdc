"""The rounds of a draw (Evans et al. 2024, Algorithms 1 and 3): each chunk is drawn given all earlier chunks.

One process and many shards run the same rounds. What differs is how a chunk is found and who holds its embeddings; that
is what a `Pool` answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses.base import Chunk, RunningScores
from selector_server.sampling.noise import Keys, draw_chunk, open_logits
from selector_server.sampling.plan import Picks, Plan
from selector_server.sampling.scores import PairScores, Scores
from selector_server.sampling.similarity import Apart, first_of_each

# So many candidates are compared with each other at once.
COMPARED = 2048


@dataclass(frozen=True)
class Drawn:
    """The m picks of one round: their indices in the whole super-batch, int64 [m], and their scores, float64 [m], both
    in draw order; which of them are held here, bool [m]; and the chunk, to be added to the running scores."""

    indices: Tensor
    scores: Tensor
    here: Tensor
    chunk: Chunk

    def at(self, rows: Tensor) -> "Drawn":
        """Some of them, int64 [n], in that order."""
        here, reference = self.here[rows], self.chunk.reference
        held = (self.here.cumsum(0) - 1)[rows[here]]
        chunk = Chunk(
            [model.at(rows) for model in self.chunk.models],
            self.chunk.rows[held.to(self.chunk.rows.device)],
            None if reference is None else reference.at(rows),
        )
        return Drawn(self.indices[rows], self.scores[rows], here, chunk)

    @staticmethod
    def joined(parts: Sequence["Drawn"]) -> "Drawn":
        """All of them, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        chunks = [part.chunk for part in parts]
        references = [chunk.reference for chunk in chunks if chunk.reference is not None]
        models = [Embedded.joined(list(model)) for model in zip(*(chunk.models for chunk in chunks), strict=True)]
        chunk = Chunk(models, torch.cat([one.rows for one in chunks]), Embedded.joined(references))
        indices, scores = torch.cat([part.indices for part in parts]), torch.cat([part.scores for part in parts])
        return Drawn(indices, scores, torch.cat([part.here for part in parts]), chunk)


class Pool(Protocol):
    """The super-batch that a chunk is drawn from. This process holds some of it or all."""

    @property
    def first(self) -> int:
        """The index in the super-batch of the first candidate held here."""

    @property
    def size(self) -> int:
        """B, the number of candidates in the super-batch."""

    def draw(self, ranking: Tensor, score: Tensor, size: int) -> Drawn:
        """Draws `size` picks from all candidates, given the keys and the scores of those held here, float64 [n]. There
        are fewer if not so many keys are above -inf."""

    def total(self, here: float) -> float:
        """The score of the whole sub-batch, given what the picks held here contribute to it."""


def draw_in_chunks(scores: Scores, running: RunningScores, plan: Plan, pool: Pool) -> Picks:
    """Draws plan.picks from the pool, of which `scores` and `running` have the candidates held here.

    The plan's uniform picks come first, so that all others are drawn given them.
    """
    device = scores.own().device
    keys = Keys(plan, scores.size, device, pool.first)
    # A closed candidate is as if it were taken already.
    taken = torch.zeros(scores.size, dtype=torch.bool, device=device) if scores.open is None else ~scores.open
    apart = _apart(scores)
    indices: list[Tensor] = []
    drawn_scores: list[Tensor] = []
    for round_, size in enumerate((plan.explore, *plan.sizes), start=-1):
        if not size:
            continue
        score = running.scores()
        logits = open_logits(score if round_ >= 0 else torch.zeros_like(score), taken, plan)
        ranking = keys.of(logits, round_) if round_ >= 0 else keys.uniform(logits)
        if apart is None:
            drawn = pool.draw(ranking, score, size)
        else:
            drawn = _draw_apart(pool, apart, ranking, score, size, plan.ranks)
        taken[drawn.chunk.rows] = True
        # Nothing else is kept of a round: its embeddings would add up to those of the whole sub-batch.
        indices.append(drawn.indices)
        drawn_scores.append(drawn.scores)
        if round_ + 1 < len(plan.sizes):
            running.add(drawn.chunk)
    total = pool.total(running.finish(drawn.chunk))
    near = None if apart is None else apart.near
    return Picks(torch.cat(indices).to(device), torch.cat(drawn_scores).to(device), total, near)


def _apart(scores: Scores) -> Apart | None:
    """What keeps picks apart; None if they may be alike."""
    if not isinstance(scores, PairScores) or scores.max_similarity is None or scores.reference is None:
        return None
    apart = Apart(scores.reference, scores.max_similarity, scores.tile_bytes)
    if scores.recent is not None:
        apart.add(scores.recent)
    return apart


def _draw_apart(pool: Pool, apart: Apart, ranking: Tensor, score: Tensor, size: int, ranks: int) -> Drawn:
    """Draws `size` picks, the same number of every rank: the best by their keys that are not too much like a pick. If
    too few are unlike all picks, the best of the others fill up, for a sub-batch has its size."""
    left, share = torch.full((ranks,), size // ranks), pool.size // ranks
    parts: list[Drawn] = []
    while (most := int(left.max())) > 0:
        asked = min(2 * most, -(-COMPARED // ranks), share) * ranks
        offered = pool.draw(ranking.masked_fill(apart.near, -torch.inf), score, asked)
        reference = offered.chunk.reference
        assert reference is not None
        rows = apart.first(reference, offered.indices // share, left)
        if not len(rows):
            offered = pool.draw(ranking, score, most * ranks)
            rows = first_of_each(offered.indices // share, left)
        part = offered.at(rows)
        assert part.chunk.reference is not None
        left = left - torch.bincount(part.indices.cpu() // share, minlength=ranks)
        ranking = ranking.index_fill(0, part.chunk.rows, -torch.inf)
        apart.add(part.chunk.reference)
        parts.append(part)
    return Drawn.joined(parts)


@dataclass(frozen=True)
class WholePool:
    """All candidates are held here. The draw ends when `scores.check` raises, which is asked once a round."""

    scores: Scores
    plan: Plan
    first: int = 0

    @property
    def size(self) -> int:
        return self.scores.size

    def draw(self, ranking: Tensor, score: Tensor, size: int) -> Drawn:
        self.scores.check()
        rows = draw_chunk(ranking, size, self.plan)
        rows = rows[ranking[rows] > -torch.inf]
        return Drawn(rows, score[rows], torch.ones_like(rows, dtype=torch.bool), self.scores.chunk(rows))

    def total(self, here: float) -> float:
        return here
