"""What a loss must offer to the sampler: scores that are kept up to date while a sub-batch grows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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
    the super-batch.
    """

    models: Sequence[Embedded]
    rows: Tensor

    @classmethod
    def of(cls, models: Sequence[Weighted], rows: Tensor) -> Self:
        """The chunk of these rows, int64 [m], of the candidates at hand."""
        return cls([model.at(rows) for _, model in models], rows)


class RunningScores(ABC):
    """One loss, applied to B candidates: what each of them would add to the picks so far.

    A draw asks for `scores`, adds the chunk that it drew, and asks again; the last chunk goes to `finish`. Gains, noise
    and masks are the draw's business. Over shards, each shard keeps the scores of its own candidates and adds the
    picks of all of them.
    """

    def __init__(self, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False) -> None:
        """`models` are the B candidates as each model sees them. `tile_bytes` bounds the memory beyond embeddings and
        accumulators; None suits the device. `fused` asks for the GPU kernel, where the loss has one."""
        self.models, self.tile_bytes, self.fused = models, tile_bytes, fused

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

    @staticmethod
    def pairs(_models: Sequence[Weighted]) -> Tensor | None:
        """S_ik + S_ki of each two different candidates, float32 [B, B], and 0 on the diagonal; None for a loss that is
        no sum over pairs. With it, small super-batches are scored all at once (all_pairs.py)."""
        return None

    @classmethod
    def total(cls, models: Sequence[Weighted], tile_bytes: int | None = None) -> float:
        """The score of all these candidates taken as one batch, in nats."""
        everything = torch.arange(len(models[0][1]), device=models[0][1].image.device)
        return cls(models, tile_bytes).finish(Chunk([model for _, model in models], everything))

    def sample(self, size: int, among: Tensor | None) -> Tensor:
        """Indices, int64 [at most size], of different candidates `among` these, int64 [n], or among all: the same ones
        at every call."""
        device = self.models[0][1].image.device
        count = len(self.models[0][1]) if among is None else len(among)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].to(device)
        return order if among is None else among[order]
