"""What a loss must offer to a draw in chunks: scores that are kept up to date as picks are added."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded

# A model and its weight in the score: +1 or -1.
Weighted = tuple[int, Embedded]

# Candidates whose pairs estimate what a uniform sub-batch would score.
SAMPLE = 512


@dataclass(frozen=True)
class Chunk:
    """Picks of one round: `models`, the picks as each model sees them, in the order of the candidates' models; and
    `rows` int64 [m], which of the candidates at hand are among the picks (all of them, unless this is a shard)."""

    models: Sequence[Embedded]
    rows: Tensor

    @staticmethod
    def of(models: Sequence[Weighted], rows: Tensor) -> "Chunk":
        return Chunk([model.at(rows) for _, model in models], rows)


class Running(ABC):
    """Scores of candidates given the picks so far. Gains and masks are the draw's business."""

    def __init__(self, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False) -> None:
        """`fused` asks for the GPU kernel where the loss has one."""
        self.models, self.tile_bytes, self.fused = models, tile_bytes, fused

    @abstractmethod
    def scores(self) -> Tensor:
        """Score of each candidate if it were added now, float64 [B], nats."""

    @abstractmethod
    def add(self, chunk: Chunk) -> None:
        """Takes the picks of a round into account."""

    @abstractmethod
    def finish(self, chunk: Chunk) -> float:
        """Takes the last round's picks, whose effect on other candidates is of no interest any more, and returns the
        criterion summed over all pairs of the picks at hand with all picks."""

    @abstractmethod
    def uniform_total(self, picks: int) -> float:
        """What `finish` returns on average over uniform sub-batches of that many candidates, estimated from SAMPLE of
        them. To be asked before any `add`."""

    def sample(self, size: int) -> Tensor:
        """Indices int64 of that many different candidates, the same ones at every call."""
        count, device = len(self.models[0][1]), self.models[0][1].image.device
        return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].to(device)


def total_of(running: type[Running], models: Sequence[Weighted], tile_bytes: int | None) -> float:
    """The criterion summed over all pairs of a whole batch."""
    everything = torch.arange(len(models[0][1]), device=models[0][1].image.device)
    return running(models, tile_bytes).finish(Chunk([model for _, model in models], everything))
