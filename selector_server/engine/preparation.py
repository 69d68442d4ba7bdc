"""What a selection needs before the device does: known reference embeddings, decoded images, tokens. Runs beside the
device's thread, one thread a request; files are decoded on a bounded pool."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.preprocess import Preprocessor
from selector_server.encoding.reference_cache import Found, ReferenceCache
from selector_server.engine.stopwatch import timed
from selector_server.engine.task import Samples, Stages, Task
from selector_server.errors import InvalidRequest, NotPossible
from selector_server.sampling import Needs

_FITS_BOTH = "send files and strings, which fit both, or fill its cache"


@dataclass(frozen=True)
class ModelInput:
    """What one model encodes: pixels uint8 [n, H, W, C] and tokens int64 [n, T]."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]

    def at(self, rows: NDArray[np.int64]) -> "ModelInput":
        """Some of the rows; all of them are not copied."""
        return self if len(rows) == len(self.pixels) else ModelInput(self.pixels[rows], self.tokens[rows])


@dataclass(frozen=True)
class Prepared:
    """A task, and what its models encode: the learner all B candidates, the reference those that `found` lacks.
    Empty inputs where a model or the samples themselves are not needed."""

    task: Task
    learner: ModelInput | None = None
    reference: ModelInput | None = None
    found: Found | None = None
    stages: Stages = field(default_factory=Stages)

    @property
    def cached(self) -> int:
        """Candidates whose reference embeddings were found."""
        return 0 if self.found is None else int(self.found.known.sum())

    @property
    def uncached(self) -> int:
        """Those that were looked up in vain."""
        return 0 if self.found is None else len(self.found.known) - self.cached


class Preparation:
    """Either preprocessor may be missing, with its model; so may the cache."""

    def __init__(
        self, learner: Preprocessor | None, reference: Preprocessor | None, cache: ReferenceCache | None
    ) -> None:
        self._learner, self._reference, self._cache = learner, reference, cache

    def extra_bytes(self, task: Task) -> int:
        """Most bytes that `run` makes of a task, beside its payload."""
        samples = task.candidates
        if not isinstance(samples, Samples) or not isinstance(samples.images, list):
            return 0
        return task.size * sum(p.sample_bytes for p in (self._learner, self._reference) if p is not None)

    def run(self, task: Task, check: Callable[[], None] = lambda: None) -> Prepared:
        """Raises InvalidRequest, LimitExceeded or NotPossible, and what `check` raises, which is asked often."""
        samples, stages = task.candidates, Stages()
        if not isinstance(samples, Samples) or task.policy.needs is Needs.NOTHING:
            return Prepared(task, stages=stages)
        learner = reference = found = None
        if task.criterion.needs_reference and self._cache is not None and samples.ids:
            with timed(stages, "cache"):
                found = self._cache.find(samples.ids)
        with timed(stages, "preprocess"):
            if task.criterion.needs_learner and self._learner is not None:
                learner = _input(self._learner, samples.images, samples.texts, check)
            if task.criterion.needs_reference and self._reference is not None:
                reference = self._reference_input(samples, learner, found, check)
        return Prepared(task, learner, reference, found, stages)

    def _reference_input(
        self, samples: Samples, learner: ModelInput | None, found: Found | None, check: Callable[[], None]
    ) -> ModelInput | None:
        assert self._reference is not None
        rows = np.arange(len(samples.images)) if found is None else np.flatnonzero(~found.known)
        if not len(rows):
            return None
        if learner is not None and self._learner is not None and self._learner.same_input(self._reference):
            return learner.at(rows)
        if (
            isinstance(samples.texts, np.ndarray)
            and self._learner is not None
            and not self._learner.same_tokens(self._reference)
        ):
            raise NotPossible("samples.tokens", "set", f"the reference has a tokenizer of its own; {_FITS_BOTH}")
        images, texts = (_at(part, rows) for part in (samples.images, samples.texts))
        try:
            return _input(self._reference, images, texts, check)
        except InvalidRequest as error:
            if learner is None:
                raise
            limit = f"{error.limit}; the reference takes other inputs than the learner: {_FITS_BOTH}"
            raise NotPossible(f"reference, {error.field}", error.value, limit) from error


def _at(part: NDArray[Any] | list[bytes], rows: NDArray[np.int64]) -> Any:
    if len(rows) == len(part):
        return part
    return part[rows] if isinstance(part, np.ndarray) else [part[row] for row in rows]


def _input(preprocessor: Preprocessor, images: Any, texts: Any, check: Callable[[], None]) -> ModelInput:
    return ModelInput(preprocessor.pixels(images, check), preprocessor.tokens(texts, check))
