"""What a candidate, and a pair of candidates, is worth: losses compared by a criterion, in nats, without the gain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Protocol, Self

from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses import Loss, all_pairs
from selector_server.sampling.losses.base import RunningScores, Weighted


class Criterion(Enum):
    """Which losses make the score (JEST section 2.1), as the weights of learner and reference."""

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


class Scores(Protocol):
    """What a policy may ask about a super-batch of `size` candidates. All scores are in nats."""

    @property
    def size(self) -> int:
        """B, the number of candidates."""

    @property
    def open(self) -> Tensor | None:
        """Which candidates may be picked, bool [B]; None if all may. What stands in the place of the others is finite,
        and means nothing."""

    def own(self) -> Tensor:
        """The score of each candidate by itself, float64 [B]."""

    def total(self, picks: Tensor) -> float:
        """The score of `picks`, int64 [b], taken as one batch."""

    def uniform_total(self, picks: int) -> float:
        """The mean of `total` over uniform sub-batches of that many open candidates."""

    def at(self, rows: Tensor) -> Self:
        """The scores of these candidates, int64 [n], as a super-batch of their own, all of it open."""

    def with_open(self, open_: Tensor) -> Self:
        """The same scores, of which these candidates are open, bool [B]."""


@dataclass(frozen=True)
class ScalarScores:
    """One score for each candidate and none for pairs, float [B]: the setting of RHO-LOSS."""

    values: Tensor
    open: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.values)

    def own(self) -> Tensor:
        return self.values.double()

    def total(self, picks: Tensor) -> float:
        return float(self.own()[picks].sum())

    def uniform_total(self, picks: int) -> float:
        own = self.own()
        return float((own if self.open is None else own[self.open]).mean()) * picks

    def at(self, rows: Tensor) -> Self:
        return replace(self, values=self.values[rows], open=None)

    def with_open(self, open_: Tensor) -> Self:
        return replace(self, open=open_)


@dataclass(frozen=True)
class PairScores:
    """Scores of all pairs of candidates, computed tile by tile: a large B x B matrix is never stored.

    `learner` and `reference` are the candidates' embeddings; those that the criterion weighs must be there, or
    ValueError is raised. `tile_bytes` bounds the memory beyond embeddings and accumulators, and does not change the
    result; None suits the device. `fused` sums strips by the GPU kernel, in bfloat16, where the loss has one; see
    losses.kernel.available. `check` is asked before each round of a draw in one process, and ends it by raising.
    """

    criterion: Criterion
    learner: Embedded | None
    reference: Embedded | None
    loss: Loss = Loss.SIGMOID
    tile_bytes: int | None = None
    fused: bool = False
    check: Callable[[], None] = lambda: None
    open: Tensor | None = None

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

    def running(self) -> RunningScores:
        """Scores that a draw in chunks keeps up to date."""
        if self._pairs is None:
            return self.streamed()
        return all_pairs.AllPairs(self.models, self.own(), self._pairs)

    def streamed(self) -> RunningScores:
        """The same, round by round in any case: for candidates of which there are more elsewhere."""
        return self.loss.running(self.models, self.tile_bytes, self.fused)

    def own(self) -> Tensor:
        return self._own

    def total(self, picks: Tensor) -> float:
        return self.loss.running.total([(weight, model.at(picks)) for weight, model in self.models], self.tile_bytes)

    def uniform_total(self, picks: int) -> float:
        return self.running().uniform_total(picks, None if self.open is None else self.open.nonzero().flatten())

    def at(self, rows: Tensor) -> Self:
        learner, reference = (None if model is None else model.at(rows) for model in (self.learner, self.reference))
        return replace(self, learner=learner, reference=reference, open=None)

    def with_open(self, open_: Tensor) -> Self:
        return replace(self, open=open_)

    @cached_property
    def _own(self) -> Tensor:
        return self.streamed().scores()

    @cached_property
    def _pairs(self) -> Tensor | None:
        """All pairs, float32 [B, B], if there are few, and if the loss is a sum over them."""
        if self.fused or not all_pairs.fits(self.size, self.tile_bytes):
            return None
        return self.loss.running.pairs(self.models)
