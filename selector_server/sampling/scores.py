"""What a candidate, and a pair of candidates, is worth: losses compared by a criterion, in nats, without the gain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses import Loss, OwnScores, RunningScores, all_pairs
from selector_server.sampling.losses.base import Chunk, Weighted


class Criterion(Enum):
    """Which losses make the score (JEST section 2.1), as the weights of learner and reference. NONE is for pairs alone:
    they do not count."""

    value: tuple[int, int]

    LEARNABILITY = (1, -1)
    EASY_REFERENCE = (0, -1)
    HARD_LEARNER = (1, 0)
    NONE = (0, 0)

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

    def chunk(self, rows: Tensor) -> Chunk:
        """The picks of these rows, int64 [m], as a draw hands them on."""

    def check(self) -> None:
        """Raises if nobody waits for the draw any more. It is asked once a round."""


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

    def chunk(self, rows: Tensor) -> Chunk:
        return Chunk((), rows)

    def check(self) -> None:
        """Nobody ends a draw that takes one round."""


@dataclass(frozen=True)
class PairScores:
    """Scores of all pairs of candidates, computed tile by tile: a large B x B matrix is never stored.

    `criterion` says which losses count for a candidate by itself, and `pair_criterion` which count for a pair of two
    candidates; None stands for the same. They may differ for losses that are sums over pairs. `learner` and `reference`
    are the candidates' embeddings; those that are weighed must be there. In the place of the learner's there may be its
    loss of each candidate by itself, `learner_losses`, float [B], where it counts for no pair and the loss is sigmoid.
    With `max_similarity`, in (0, 1), a candidate is not picked whose image or text has a larger cosine with that of a
    pick, or of `recent` picks, as the reference sees them (similarity.py). ValueError is raised if something is missing
    for that.

    `tile_bytes` bounds the memory beyond embeddings and accumulators, and does not change the result; None suits the
    device. `fused` sums strips by the GPU kernel, in bfloat16, where the loss has one; see losses.kernel.available.
    `check` is asked before each round of a draw in one process, and ends it by raising.
    """

    criterion: Criterion
    learner: Embedded | None
    reference: Embedded | None
    loss: Loss = Loss.SIGMOID
    tile_bytes: int | None = None
    fused: bool = False
    check: Callable[[], None] = lambda: None
    open: Tensor | None = None
    pair_criterion: Criterion | None = None
    learner_losses: Tensor | None = None
    max_similarity: float | None = None
    recent: Embedded | None = None

    def __post_init__(self) -> None:
        check_criteria(self.criterion, self.pair_criterion, self.loss)
        if self.learner_losses is not None and self.loss is not Loss.SIGMOID:
            raise ValueError(f"losses of the learner are of the sigmoid loss, not of {self.loss.value}")
        needed = (*self.criterion.value, *self._pairs_by.value)
        given = (self._learner, self.reference, self.learner, self.reference)
        for name, weight, model in zip(("learner", "reference") * 2, needed, given, strict=True):
            if weight and model is None:
                raise ValueError(f"criterion {self.criterion.name} needs the {name}'s embeddings")
        if self.max_similarity is not None and self.reference is None:
            raise ValueError(f"max_similarity is {self.max_similarity}; it needs the reference's embeddings")

    @property
    def models(self) -> list[Weighted]:
        """The models that score pairs, each with its weight."""
        pairs = zip(self._pairs_by.value, (self.learner, self.reference), strict=True)
        return [(weight, model) for weight, model in pairs if weight and model is not None]

    @property
    def shown(self) -> list[Embedded]:
        """What must be known of each pick: the models that score pairs, and the reference if picks must not be too much
        alike."""
        models = [model for _, model in self.models]
        apart = self.max_similarity is not None and not self._pairs_by.needs_reference
        return [*models, self.reference] if apart and self.reference is not None else models

    @property
    def size(self) -> int:
        return len(self._given)

    @property
    def device(self) -> torch.device:
        """Where the candidates' embeddings are."""
        given = self._given
        return given.device if isinstance(given, Tensor) else given.image.device

    def running(self) -> RunningScores:
        """Scores that a draw in chunks keeps up to date."""
        if self._pairs is None:
            return self.streamed()
        return all_pairs.AllPairs(self.own(), self.models, self._pairs)

    def streamed(self) -> RunningScores:
        """The same, round by round in any case: for candidates of which there are more elsewhere."""
        if not self.models:
            return OwnScores(self.own())
        return self.loss.running(self.own(), self.models, self.tile_bytes, self.fused)

    def own(self) -> Tensor:
        return self._own

    def own_losses(self) -> tuple[Tensor | None, Tensor | None]:
        """The loss of each candidate by itself, float64 [B], by learner and reference, as far as they are there."""
        learner, reference = (None if model is None else self._loss(model) for model in (self._learner, self.reference))
        return learner, reference

    def total(self, picks: Tensor) -> float:
        own, models = self._own[picks], [(weight, model.at(picks)) for weight, model in self.models]
        return self.loss.running.total(own, models, self.tile_bytes) if models else float(own.sum())

    def uniform_total(self, picks: int) -> float:
        return self.running().uniform_total(picks, None if self.open is None else self.open.nonzero().flatten())

    def at(self, rows: Tensor) -> Self:
        learner, reference = (None if model is None else model.at(rows) for model in (self.learner, self.reference))
        losses = None if self.learner_losses is None else self.learner_losses[rows]
        return replace(self, learner=learner, reference=reference, learner_losses=losses, open=None)

    def with_open(self, open_: Tensor) -> Self:
        return replace(self, open=open_)

    def chunk(self, rows: Tensor) -> Chunk:
        return self.chunk_of([model.at(rows) for model in self.shown], rows)

    def chunk_of(self, shown: Sequence[Embedded], rows: Tensor) -> Chunk:
        """The picks of which `shown` has what must be known, and of which these `rows`, int64 [n], are held here."""
        models = shown[: len(self.models)]
        return Chunk(models, rows, None if self.max_similarity is None else shown[-1])

    @property
    def _pairs_by(self) -> Criterion:
        return self.criterion if self.pair_criterion is None else self.pair_criterion

    @property
    def _learner(self) -> Embedded | Tensor | None:
        return self.learner if self.learner_losses is None else self.learner_losses

    def _loss(self, model: Embedded | Tensor) -> Tensor:
        return model.double() if isinstance(model, Tensor) else self.loss.running.own_losses(model)

    @property
    def _given(self) -> Embedded | Tensor:
        """What the first model that counts has of each candidate."""
        given = zip(self.criterion.value, (self._learner, self.reference), strict=True)
        return next(model for weight, model in given if weight and model is not None)

    @cached_property
    def _own(self) -> Tensor:
        parts = [
            weight * self._loss(model)
            for weight, model in zip(self.criterion.value, (self._learner, self.reference), strict=True)
            if weight and model is not None
        ]
        return torch.stack(parts).sum(dim=0)

    @cached_property
    def _pairs(self) -> Tensor | None:
        """All pairs, float32 [B, B], if there are few, and if the loss is a sum over them."""
        if self.fused or not self.models or not all_pairs.fits(self.size, self.tile_bytes):
            return None
        return self.loss.running.pairs(self.models)


def check_criteria(criterion: Criterion, pair_criterion: Criterion | None, loss: Loss) -> None:
    """Raises ValueError for criteria by which no candidates can be scored (docs/adr/0021)."""
    if criterion is Criterion.NONE:
        raise ValueError("criterion is NONE; a candidate by itself must count")
    if pair_criterion not in {None, criterion} and loss is not Loss.SIGMOID:
        both = f"pair_criterion is {pair_criterion and pair_criterion.name} beside criterion {criterion.name}"
        raise ValueError(f"{both}; they may differ for the sigmoid loss only")
