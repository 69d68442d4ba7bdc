"""Raw candidates, which this server's models encode."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.encoding.reference_cache import Found
from selector_server.engine.arrays import ModelEmbeddings, cosines
from selector_server.engine.candidates.prefilter import close_prefiltered
from selector_server.engine.candidates.preparation import Images, ModelInput, Preparation, Texts
from selector_server.engine.candidates.repeats import close_repeats
from selector_server.engine.closed import ALL_OPEN, Closed, Closing
from selector_server.engine.models import Models
from selector_server.engine.request import Request
from selector_server.engine.task import ServedWeights, Task
from selector_server.sampling import Embedded, Scores


@dataclass(frozen=True)
class Samples:
    """Samples as they were received: pixels uint8 [B, H, W, C] or files; tokens int [B, T] or UTF-8 texts; `ids` are
    names of the candidates, or empty; open candidates have different ones. `brought` is what the reference makes of
    them, if that came with them, and `fingerprint` is that reference's."""

    form: ClassVar[str] = "samples"
    encoded: ClassVar[bool] = True
    images: Images
    texts: Texts
    ids: list[bytes] = field(default_factory=list)
    closed: Closed = ALL_OPEN
    brought: ModelEmbeddings | None = None
    fingerprint: str = ""

    @property
    def size(self) -> int:
        return len(self.images)

    @property
    def keyed(self) -> bool:
        return bool(self.ids) and not self.reference_brought

    @property
    def reference_brought(self) -> bool:
        return self.brought is not None

    def extra_bytes(self, preparation: Preparation) -> int:
        return self.size * preparation.sample_bytes if isinstance(self.images, list) else 0

    def prepare(self, task: Task[Any], preparation: Preparation, request: Request) -> "PreparedSamples":
        closing = Closing(self.closed)
        bad = closing.bad if task.excludes else None
        if task.excludes:
            with request.timed("preprocess"):
                if not self.ids:
                    close_repeats(self.images, self.texts, self.closed.open_rows(self.size), closing, request)
                if not task.encoded:
                    preparation.examine(self.images, self.texts, closing.open_rows(self.size), request, closing.bad)
        learner = reference = found = None
        asked = rows = unknown = closing.open_rows(self.size)
        if task.encoded:
            if task.rule.needs_reference:
                if self.brought is None:
                    found = preparation.find(self._ids(rows), self.images, rows, request)
                    unknown = rows if found is None else rows[~found.known]
                else:
                    unknown = rows[:0]
                self._prefilter(task, closing, rows, found)
                rows, unknown = closing.left(rows), closing.left(unknown)
            with request.timed("preprocess"):
                if task.rule.needs_learner:
                    learner = preparation.learner_input(self.images, self.texts, rows, request, bad)
                    rows, unknown = closing.left(rows), closing.left(unknown)
                    learner = _at(learner, rows)
                if task.rule.needs_reference:
                    reference = preparation.reference_input(self.images, self.texts, unknown, learner, request, bad)
                    rows, unknown = closing.left(rows), closing.left(unknown)
                    learner, reference = _at(learner, rows), _at(reference, unknown)
        closed = closing.closed()
        if found is not None:
            found = found.at(closed.open(self.size)[asked])
        brought = self.brought.at(rows) if self.brought is not None and task.rule.needs_reference else None
        ids = self._ids(rows) if self.keyed else []
        return PreparedSamples(self.size, ids, learner, reference, found, closed, brought, self.fingerprint)

    def _prefilter(self, task: Task[Any], closing: Closing, rows: NDArray[np.int64], found: Found | None) -> None:
        """Closes those of these rows that the task's prefilter leaves out."""
        if task.rule.prefilter is None:
            return
        if self.brought is not None:
            brought = self.brought.at(rows)
            close_prefiltered(task, closing, rows, np.ones(len(rows), np.bool_), brought.cosines(), brought.image)
        elif found is not None:
            close_prefiltered(task, closing, rows, found.known, cosines(found.image, found.text), found.image)

    def _ids(self, rows: NDArray[np.int64]) -> list[bytes]:
        return self.ids if len(rows) == self.size else [self.ids[row] for row in rows] if self.ids else []


@dataclass(frozen=True)
class PreparedSamples:
    """What the models encode of `size` samples, of which some are `closed`: the learner all open ones, the reference
    those of them that `found` lacks. Open ones alone have `ids`, too, or what was `brought` by the reference of that
    `fingerprint`. An input is None where its model, or the samples themselves, are not needed."""

    form: ClassVar[str] = Samples.form
    encoded: ClassVar[bool] = True
    size: int
    ids: list[bytes]
    learner: ModelInput | None = None
    reference: ModelInput | None = None
    found: Found | None = None
    closed: Closed = ALL_OPEN
    brought: ModelEmbeddings | None = None
    fingerprint: str = ""

    @property
    def keyed(self) -> bool:
        return bool(self.ids)

    @property
    def reference_brought(self) -> bool:
        return self.brought is not None

    @property
    def not_examined(self) -> int:
        brought = 0 if self.brought is None else len(self.brought)
        return (self._known + brought if self.learner is None else 0) + self.closed.left_out

    @property
    def cached(self) -> int:
        return 0 if self.found is None else self._known + self.closed.left_out  # A prefilter closes known ones only.

    @property
    def uncached(self) -> int:
        return 0 if self.found is None else len(self.found.known) - self._known

    @property
    def _known(self) -> int:
        """How many open candidates' embeddings came from the cache."""
        return 0 if self.found is None else int(self.found.known.sum())

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        learner = _joined([part.learner for part in parts])
        reference = learner if _share_input(parts) else _joined([part.reference for part in parts])
        found = [part.found for part in parts if part.found is not None]
        names = ("known", "image", "text")
        known = Found(*(np.concatenate([getattr(one, name) for one in found]) for name in names)) if found else None
        size, ids = sum(part.size for part in parts), [key for part in parts for key in part.ids]
        closed = Closed.joined([(part.closed, part.size) for part in parts])
        brought = ModelEmbeddings.joined([part.brought for part in parts])
        return cls(size, ids, learner, reference, known, closed, brought, parts[0].fingerprint)

    @classmethod
    def joined_bytes(cls, parts: Sequence[Self]) -> int:
        arrays: list[ModelInput | ModelEmbeddings | NDArray[Any]] = []
        once = _share_input(parts)
        for part in parts:
            given = (part.learner, None if once else part.reference, part.brought)
            arrays += [one for one in given if one is not None]
            arrays += [] if part.found is None else [part.found.image, part.found.text]
        return sum(array.nbytes for array in arrays)

    def scores(self, task: Task[Any], models: Models, request: Request) -> tuple[Scores, ServedWeights | None]:
        served, learner = None, None
        if self.learner is not None:
            assert models.learner is not None
            weights, served = models.weights_for(task)
            request.begin("encode_learner", "encode")
            with request.timed("encode_learner"):
                inputs = self.learner
                learner = models.learner.encode(inputs.pixels, inputs.tokens, weights, request.check, inputs.rows)
        reference = None
        if self.brought is not None:
            reference = models.embedded(self.brought)
        elif task.rule.needs_reference:
            reference = self._reference(models, request)
        return models.pairs(task, self._in_place(learner), self._in_place(reference), request), served

    def _in_place(self, embedded: Embedded | None) -> Embedded | None:
        """The embeddings of the open candidates among those of all candidates; the others are zeros."""
        if embedded is None or not self.closed:
            return embedded
        rows = torch.from_numpy(self.closed.open_rows(self.size)).to(embedded.image.device)
        image, text = (part.new_zeros((self.size, part.shape[1])) for part in (embedded.image, embedded.text))
        image[rows], text[rows] = embedded.image, embedded.text
        return Embedded(image, text, embedded.scale, embedded.bias)

    def _reference(self, models: Models, request: Request) -> Embedded:
        """The reference's embeddings of open candidates: known ones from the cache, the others computed and kept."""
        assert models.reference is not None
        weights, fresh = models.reference.constant_weights(), None
        if self.reference is not None:
            request.begin("encode_reference", "encode")
            with request.timed("encode_reference"):
                inputs = self.reference
                fresh = models.reference.encode(inputs.pixels, inputs.tokens, weights, request.check, inputs.rows)
        if (found := self.found) is None:
            assert fresh is not None
            return fresh
        assert models.cache is not None
        with request.timed("cache"):
            embedded, _ = models.cache.merge(self.ids, found, fresh, weights.scale, weights.bias, models.device)
        return embedded


def _at(one: ModelInput | None, rows: NDArray[np.int64]) -> ModelInput | None:
    return None if one is None else one.at(rows)


def _joined(inputs: Sequence[ModelInput | None]) -> ModelInput | None:
    """A rank whose references are all known has no input for the reference."""
    given = [one for one in inputs if one is not None]
    return ModelInput.joined(given) if given else None


def _share_input(parts: Sequence[PreparedSamples]) -> bool:
    """Whether learner and reference look at the same arrays."""
    return all(part.learner is part.reference for part in parts)
