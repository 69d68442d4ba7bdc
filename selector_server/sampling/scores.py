"""What a candidate, and a pair of candidates, is worth: losses compared by a criterion. In nats, without the gain."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol

from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses import all_pairs as at_once
from selector_server.sampling.losses.base import Running, Weighted, total_of
from selector_server.sampling.losses.sigmoid import Sigmoid
from selector_server.sampling.losses.softmax import Softmax


class Criterion(Enum):
    """Which losses make the score (JEST section 2.1): the weights of learner and reference."""

    value: tuple[int, int]

    LEARNABILITY = (1, -1)
    EASY_REFERENCE = (0, -1)
    HARD_LEARNER = (1, 0)

    @property
    def needs_learner(self) -> bool:
        return self.value[0] != 0

    @property
    def needs_reference(self) -> bool:
        return self.value[1] != 0


class Loss(Enum):
    """The contrastive loss whose terms are compared."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


_RUNNING: dict[Loss, type[Running]] = {Loss.SIGMOID: Sigmoid, Loss.SOFTMAX: Softmax}


class Scores(Protocol):
    """What a policy may ask about a super-batch of `size` candidates."""

    @property
    def size(self) -> int:
        """B."""

    def own(self) -> Tensor:
        """Score of each candidate by itself, float64 [B]."""

    def total(self, picks: Tensor) -> float:
        """Score of `picks`, int64 [b], taken as one batch."""

    def uniform_total(self, picks: int) -> float:
        """Mean of `total` over uniform sub-batches of that many picks."""


@dataclass(frozen=True)
class ScalarScores:
    """One score per candidate and none for pairs, float [B]: the RHO-LOSS setting."""

    values: Tensor

    @property
    def size(self) -> int:
        return len(self.values)

    def own(self) -> Tensor:
        return self.values.double()

    def total(self, picks: Tensor) -> float:
        return float(self.own()[picks].sum())

    def uniform_total(self, picks: int) -> float:
        return float(self.own().mean()) * picks


@dataclass(frozen=True)
class PairScores:
    """Scores of all pairs, computed tile by tile: a B x B matrix is never stored.

    `tile_bytes` bounds the memory beyond embeddings and accumulators, not the result; None suits the device. `fused`
    sums the sigmoid loss's strips by the GPU kernel, in bfloat16; see kernel.available. `check` is asked before each
    round of a draw, and ends it by raising.
    """

    criterion: Criterion
    learner: Embedded | None
    reference: Embedded | None
    loss: Loss = Loss.SIGMOID
    tile_bytes: int | None = None
    fused: bool = False
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        needed = zip(("learner", "reference"), self.criterion.value, (self.learner, self.reference), strict=True)
        for name, weight, model in needed:
            if weight and model is None:
                raise ValueError(f"criterion {self.criterion.name} needs the {name}'s embeddings")

    @property
    def models(self) -> list[Weighted]:
        """The models that the criterion needs, each with its weight."""
        pairs = zip(self.criterion.value, (self.learner, self.reference), strict=True)
        return [(weight, model) for weight, model in pairs if weight and model is not None]

    @property
    def size(self) -> int:
        return len(self.models[0][1])

    def running(self) -> Running:
        """Scores that a draw in chunks keeps up to date."""
        if self.loss is Loss.SIGMOID and not self.fused and at_once.fits(self.size, self.tile_bytes):
            return at_once.AtOnce(self.models, self.own(), self._pairs)
        return self.streamed()

    def streamed(self) -> Running:
        """The same for candidates of which there are more elsewhere, or too many to score all pairs at once."""
        return _RUNNING[self.loss](self.models, self.tile_bytes, self.fused)

    def own(self) -> Tensor:
        return self._own

    def total(self, picks: Tensor) -> float:
        models = [(weight, model.at(picks)) for weight, model in self.models]
        return total_of(_RUNNING[self.loss], models, self.tile_bytes)

    def uniform_total(self, picks: int) -> float:
        return self.running().uniform_total(picks)

    @cached_property
    def _own(self) -> Tensor:
        return self.streamed().scores()

    @cached_property
    def _pairs(self) -> Tensor:
        return at_once.pairs_of(self.models)
