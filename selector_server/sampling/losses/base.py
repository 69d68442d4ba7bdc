"""What a loss must offer to the sampler: scores that are kept up to date while a sub-batch grows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded

# A model and the weight of its loss in the score: +1 or -1.
Weighted = tuple[int, Embedded]

# So many candidates are enough to estimate what a uniform sub-batch would score.
SAMPLE = 512


@dataclass(frozen=True)
class Chunk:
    """The m picks of one round.

    `models` holds the m picks as each model sees them, in the order of the candidates' models. `rows`, int64 [n],
    says which of the candidates at hand are among the picks: n = m, unless the candidates at hand are one shard of
    the super-batch. `reference` holds the picks as the reference sees them, if picks must not be too much alike.
    """

    models: Sequence[Embedded]
    rows: Tensor
    reference: Embedded | None = None


class RunningScores(ABC):
    """What each of B candidates would add to the picks so far.

    A draw asks for `scores`, adds the chunk that it drew, and asks again; the last chunk goes to `finish`. Gains, noise
    and masks are the draw's business. Over shards, each shard keeps the scores of its own candidates and adds the
    picks of all of them.
    """

    def __init__(
        self, own: Tensor, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False
    ) -> None:
        """`own` are the scores of the B candidates by themselves, float64 [B], and `models` are the candidates as each
        model sees them that scores pairs. `tile_bytes` bounds the memory beyond embeddings and accumulators; None suits
        the device. `fused` asks for the GPU kernel, where the loss has one."""
        self.own, self.models, self.tile_bytes, self.fused = own, models, tile_bytes, fused

    @abstractmethod
    def scores(self) -> Tensor:
        """Score of each candidate if it were added now, float64 [B], in nats."""

    @abstractmethod
    def add(self, chunk: Chunk) -> None:
        """Takes the picks of a round into account."""

    @abstractmethod
    def finish(self, chunk: Chunk) -> float:
        """Takes the picks of the last round into account, and returns the score of the whole sub-batch, in nats.

        The last picks' effect on other candidates does not matter any more. Of a shard, it is the part of the picks
        that are its own: the parts of all shards add up to the score.
        """

    @abstractmethod
    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        """What `finish` returns on average over uniform sub-batches of that many picks `among` these candidates, int64
        [n], or all, estimated from SAMPLE of them. It must be asked before any `add`."""


class OwnScores(RunningScores):
    """Scores that do not depend on picks: each candidate's own."""

    def __init__(self, own: Tensor) -> None:
        super().__init__(own, ())
        self._total = own.new_zeros(())

    def scores(self) -> Tensor:
        return self.own

    def add(self, chunk: Chunk) -> None:
        self._total = self._total + self.own[chunk.rows].sum()

    def finish(self, chunk: Chunk) -> float:
        self.add(chunk)
        return float(self._total)

    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        return picks * float((self.own if among is None else self.own[among]).mean())


class OpenScores(RunningScores):
    """The scores of the open candidates of a super-batch, in their places among all candidates. No others are computed:
    where a closed one stands, the score is 0.

    It changes no bit, for a candidate's score does not depend on where it lies (docs/adr/0007).
    """

    def __init__(self, rows: Tensor, size: int, scores: RunningScores) -> None:
        """`rows`, int64 [n], are the open ones of `size` candidates, and `scores` are theirs alone."""
        super().__init__(scores.own.new_zeros(size).index_copy(0, rows, scores.own), ())
        self._rows, self._scores = rows, scores
        self._place = rows.new_zeros(size).index_copy(0, rows, torch.arange(len(rows), device=rows.device))

    def scores(self) -> Tensor:
        return torch.zeros_like(self.own).index_copy(0, self._rows, self._scores.scores())

    def add(self, chunk: Chunk) -> None:
        self._scores.add(self._placed(chunk))

    def finish(self, chunk: Chunk) -> float:
        return self._scores.finish(self._placed(chunk))

    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        return self._scores.uniform_total(picks, None if among is None else self._place[among])

    def _placed(self, chunk: Chunk) -> Chunk:
        return replace(chunk, rows=self._place[chunk.rows])


class LossScores(RunningScores):
    """The scores by one loss, which it computes from embeddings."""

    @staticmethod
    @abstractmethod
    def own_losses(model: Embedded) -> Tensor:
        """The loss of each candidate by itself, float64 [B]: what does not depend on the rest of a sub-batch."""

    @staticmethod
    def pairs(_models: Sequence[Weighted]) -> Tensor | None:
        """S_ik + S_ki of each two different candidates, float32 [B, B], and 0 on the diagonal; None for a loss that is
        no sum over pairs. With it, small super-batches are scored all at once (all_pairs.py)."""
        return None

    @classmethod
    def total(cls, own: Tensor, models: Sequence[Weighted], tile_bytes: int | None = None) -> float:
        """The score of all these candidates taken as one batch, in nats."""
        everything = torch.arange(len(own), device=own.device)
        return cls(own, models, tile_bytes).finish(Chunk([model for _, model in models], everything))

    def sample(self, size: int, among: Tensor | None) -> Tensor:
        """Indices, int64 [at most size], of different candidates `among` these, int64 [n], or among all: the same ones
        at every call."""
        count = len(self.own) if among is None else len(among)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].to(self.own.device)
        return order if among is None else among[order]
