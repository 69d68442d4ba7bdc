"""Candidates that come as embeddings which somebody else computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from selector_server.engine.candidates.base import Given
from selector_server.engine.closed import ALL_OPEN, Closed
from selector_server.engine.models import Floats, Models
from selector_server.engine.request import Request
from selector_server.engine.task import Task
from selector_server.sampling import Embedded, PairScores


@dataclass(frozen=True)
class ModelEmbeddings:
    """One model's float [B, D] embeddings, its logit scale and its logit bias."""

    image: Floats
    text: Floats
    scale: float
    bias: float


@dataclass(frozen=True)
class Embeddings(Given):
    """Each model's embeddings of B candidates; None for a model that the criterion does not need."""

    form: ClassVar[str] = "embeddings"
    learner: ModelEmbeddings | None
    reference: ModelEmbeddings | None
    closed: Closed = ALL_OPEN

    @property
    def size(self) -> int:
        return len(self._models()[0].image)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        learner, reference = (_joined([getattr(part, name) for part in parts]) for name in ("learner", "reference"))
        return cls(learner, reference, Closed.joined([(part.closed, part.size) for part in parts]))

    @classmethod
    def joined_bytes(cls, parts: Sequence[Self]) -> int:
        return sum(model.image.nbytes + model.text.nbytes for part in parts for model in part._models())

    def scores(self, task: Task[Any], models: Models, request: Request) -> tuple[PairScores, None]:
        with request.timed("preprocess"):
            needed = task.criterion
            learner = self._on_device(self.learner, models) if needed.needs_learner else None
            reference = self._on_device(self.reference, models) if needed.needs_reference else None
        return models.pairs(task, learner, reference, request), None

    def _models(self) -> list[ModelEmbeddings]:
        return [model for model in (self.learner, self.reference) if model is not None]

    def _on_device(self, model: ModelEmbeddings | None, models: Models) -> Embedded | None:
        if model is None:
            return None
        image, text = (models.on_device(side) for side in (model.image, model.text))
        if self.closed:  # Nothing that is not finite may come into a product.
            rows = torch.tensor(list(self.closed.reasons), device=image.device)
            image[rows], text[rows] = 0.0, 0.0
        return Embedded.normalise(image, text, model.scale, model.bias)


def _joined(models: Sequence[ModelEmbeddings | None]) -> ModelEmbeddings | None:
    given = [model for model in models if model is not None]
    if not given:
        return None
    image, text = (np.concatenate([getattr(model, side) for model in given]) for side in ("image", "text"))
    return replace(given[0], image=image, text=text)
