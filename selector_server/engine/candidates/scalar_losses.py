"""Candidates that come as losses which somebody else computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from selector_server.engine.arrays import Floats
from selector_server.engine.candidates.base import Given
from selector_server.engine.candidates.prefilter import close_prefiltered
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.closed import ALL_OPEN, Closed, Closing
from selector_server.engine.models import Models
from selector_server.engine.request import Request
from selector_server.engine.task import Task
from selector_server.sampling import ScalarScores


@dataclass(frozen=True)
class ScalarLosses(Given):
    """One loss a candidate of each model, float [B]; None for a model that the criterion does not need."""

    form: ClassVar[str] = "losses"
    learner: Floats | None
    reference: Floats | None
    closed: Closed = ALL_OPEN

    @property
    def size(self) -> int:
        return len(self._arrays()[0])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        learner, reference = (_joined([getattr(part, name) for part in parts]) for name in ("learner", "reference"))
        return cls(learner, reference, Closed.joined([(part.closed, part.size) for part in parts]))

    @classmethod
    def joined_bytes(cls, parts: Sequence[Self]) -> int:
        return sum(array.nbytes for part in parts for array in part._arrays())

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> Self:  # noqa: ARG002
        if task.rule.prefilter is None or self.reference is None:
            return self
        closing = Closing(self.closed)
        rows = closing.open_rows(self.size)
        close_prefiltered(task, closing, rows, np.ones(len(rows), np.bool_), -self.reference[rows].astype(np.float64))
        return replace(self, closed=closing.closed())

    def scores(self, task: Task[Any], models: Models, request: Request) -> tuple[ScalarScores, None]:  # noqa: ARG002
        weighted = zip(task.rule.criterion.value, (self.learner, self.reference), strict=True)
        parts = [weight * models.on_device(loss).double() for weight, loss in weighted if weight and loss is not None]
        values = torch.stack(parts).sum(dim=0)
        values[self.unusable(values.device)] = 0.0
        return ScalarScores(values), None

    def _arrays(self) -> list[Floats]:
        return [array for array in (self.learner, self.reference) if array is not None]


def _joined(arrays: Sequence[Floats | None]) -> Floats | None:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None
