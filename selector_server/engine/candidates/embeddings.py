"""Candidates that come as embeddings which somebody else computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from selector_server.engine.arrays import Floats, ModelEmbeddings
from selector_server.engine.candidates.base import Given
from selector_server.engine.candidates.prefilter import close_prefiltered
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.closed import ALL_OPEN, Closed, Closing
from selector_server.engine.models import Models
from selector_server.engine.request import Request
from selector_server.engine.task import Task
from selector_server.sampling import Embedded, PairScores


@dataclass(frozen=True)
class Embeddings(Given):
    """Each model's embeddings of B candidates; None for a model that the rule does not need. The learner may be there
    by its own losses alone, float [B]."""

    form: ClassVar[str] = "embeddings"
    learner: ModelEmbeddings | None
    reference: ModelEmbeddings | None
    learner_losses: Floats | None = None
    closed: Closed = ALL_OPEN

    @property
    def size(self) -> int:
        return len(next(part for part in (self.learner_losses, self.learner, self.reference) if part is not None))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        learner = ModelEmbeddings.joined([part.learner for part in parts])
        reference = ModelEmbeddings.joined([part.reference for part in parts])
        losses = [part.learner_losses for part in parts if part.learner_losses is not None]
        closed = Closed.joined([(part.closed, part.size) for part in parts])
        return cls(learner, reference, np.concatenate(losses) if losses else None, closed)

    @classmethod
    def joined_bytes(cls, parts: Sequence[Self]) -> int:
        given = [one for part in parts for one in (part.learner, part.reference, part.learner_losses)]
        return sum(one.nbytes for one in given if one is not None)

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> Self:  # noqa: ARG002
        if task.rule.prefilter is None or self.reference is None:
            return self
        closing = Closing(self.closed)
        rows = closing.open_rows(self.size)
        reference = self.reference.at(rows)
        close_prefiltered(task, closing, rows, np.ones(len(rows), np.bool_), reference.cosines(), reference.image)
        return replace(self, closed=closing.closed())

    def scores(self, task: Task[Any], models: Models, request: Request) -> tuple[PairScores, None]:
        with request.timed("preprocess"):
            learner = self._on_device(self.learner, models) if task.rule.needs_learner else None
            reference = self._on_device(self.reference, models) if task.rule.needs_reference else None
            losses = None if self.learner_losses is None else models.on_device(self.learner_losses)
            if losses is not None:
                losses[self.unusable(losses.device)] = 0.0
        return models.pairs(task, learner, reference, request, losses), None

    def _on_device(self, model: ModelEmbeddings | None, models: Models) -> Embedded | None:
        if model is None:
            return None
        embedded = models.embedded(model)
        rows = self.unusable(embedded.image.device)  # Nothing that is not finite may come into a product.
        embedded.image[rows], embedded.text[rows] = 0.0, 0.0
        return embedded
