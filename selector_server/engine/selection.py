"""Scores a task and picks: the one path from candidates to indices. Runs on the worker's thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.encoding.model import Model, Weights
from selector_server.encoding.preprocess import Preprocessor
from selector_server.engine.task import (
    Embeddings,
    Floats,
    Losses,
    ModelEmbeddings,
    Result,
    Samples,
    ServedWeights,
    Stages,
    Task,
)
from selector_server.errors import NotPossible
from selector_server.sampling import Criterion, Embedded, Needs, PairScores, ScalarScores, Scores
from selector_server.weights.store import Store, Version


class Selection:
    """The models of this server and what it does with them. Either model may be missing."""

    def __init__(
        self,
        device: torch.device,
        preprocessor: Preprocessor | None,
        learner: Model | None,
        reference: Model | None,
        store: Store[Weights] | None,
        tile_bytes: int | None,
        fused: bool,
    ) -> None:
        self._tile_bytes, self._fused = tile_bytes, fused
        self._device, self._preprocessor = device, preprocessor
        self._learner, self._reference, self._store = learner, reference, store

    def check(self, task: Task) -> None:
        """Raises NotPossible for what this server can never do; cheap, called before the task is queued."""
        if isinstance(task.candidates, Samples) and task.policy.needs is not Needs.NOTHING:
            if task.criterion.needs_learner and self._learner is None:
                raise NotPossible("samples", task.criterion.name, "needs a learner; start the server with --learner")
            if task.criterion.needs_reference and self._reference is None:
                raise NotPossible("samples", task.criterion.name, "needs a reference; start it with --reference")
        self._version(task)

    def run(self, task: Task) -> Result:
        """Picks. Raises SelectorError."""
        stages = Stages()
        with torch.inference_mode():
            scores, version = self._scores(task, stages)
            with _timed(stages, "sample"):
                picks = task.policy.pick(scores, task.plan)
                indices: NDArray[np.int64] = picks.indices.cpu().numpy()
                count = task.plan.picks
                _check_picks(task, indices)
                scored = task.policy.needs is not Needs.NOTHING
                return Result(
                    indices=indices,
                    plan=task.plan,
                    policy=task.policy.name,
                    scores=picks.scores.cpu().numpy() if scored else None,
                    objective=picks.total / count if scored else None,
                    objective_uniform=scores.uniform_total(count) / count if scored else None,
                    weights=_served(version, task),
                    stages=stages,
                )

    def _scores(self, task: Task, stages: Stages) -> tuple[Scores, Version[Weights] | None]:
        criterion = task.criterion
        if task.policy.needs is Needs.NOTHING:
            return ScalarScores(torch.zeros(task.size, device=self._device)), None
        match task.candidates:
            case Losses(learner, reference):
                return ScalarScores(self._combine(criterion, learner, reference)), None
            case Embeddings(learner, reference):
                with _timed(stages, "preprocess"):
                    left = self._embedded(learner) if criterion.needs_learner and learner else None
                    right = self._embedded(reference) if criterion.needs_reference and reference else None
                return self._pairs(task, left, right), None
            case Samples() as samples:
                return self._encode(samples, task, stages)

    def _encode(self, samples: Samples, task: Task, stages: Stages) -> tuple[Scores, Version[Weights] | None]:
        assert self._preprocessor is not None
        with _timed(stages, "preprocess"):
            images, texts = samples.images, samples.texts
            pixels = self._preprocessor.decode(images) if isinstance(images, list) else images
            self._preprocessor.check(pixels)
            tokens = self._preprocessor.tokenise(texts) if isinstance(texts, list) else self._preprocessor.pad(texts)
        version, learner, reference = None, None, None
        if task.criterion.needs_learner:
            assert self._learner is not None
            # Taken once: the whole request is scored by this version, whatever arrives meanwhile.
            version = self._version(task)
            assert version is not None
            with _timed(stages, "encode_learner"):
                learner = self._learner.encode(pixels, tokens, version.weights)
        if task.criterion.needs_reference:
            assert self._reference is not None
            with _timed(stages, "encode_reference"):
                reference = self._reference.encode(pixels, tokens, self._reference.constant_weights())
        return self._pairs(task, learner, reference), version

    def _version(self, task: Task) -> Version[Weights] | None:
        """The version to score with; raises NotPossible if it is older than the request accepts."""
        version = None if self._store is None else self._store.current
        served = -1 if version is None else version.version
        if task.min_weights_version > max(served, 0):
            reason = "no learner" if self._store is None else self._store.status.last_error
            limit = f"version {served} is served" if served >= 0 else "no weights are served"
            raise NotPossible("min_weights_version", task.min_weights_version, f"{limit}{reason and '; '}{reason}")
        return version

    def _pairs(self, task: Task, learner: Embedded | None, reference: Embedded | None) -> PairScores:
        return PairScores(task.criterion, learner, reference, task.loss, self._tile_bytes, self._fused)

    def _embedded(self, model: ModelEmbeddings) -> Embedded:
        image, text = (self._to_device(z) for z in (model.image, model.text))
        return Embedded.normalise(image, text, model.scale, model.bias)

    def _combine(self, criterion: Criterion, learner: Floats | None, reference: Floats | None) -> Tensor:
        pairs = zip(criterion.value, (learner, reference), strict=True)
        parts = [weight * self._to_device(loss).double() for weight, loss in pairs if weight and loss is not None]
        return torch.stack(parts).sum(dim=0)

    def _to_device(self, array: Floats) -> Tensor:
        # A copy: request arrays are views into a read-only payload, which torch must not share.
        return torch.from_numpy(array.copy()).to(self._device)


def _check_picks(task: Task, indices: NDArray[np.int64]) -> None:
    """A policy, perhaps somebody else's, must never make the server return fewer, repeated or unknown candidates."""
    right = len(indices) == len(np.unique(indices)) == task.plan.picks
    if not (right and indices.min() >= 0 and indices.max() < task.size):
        raise RuntimeError(f"policy {task.policy.name!r} did not pick {task.plan.picks} different of {task.size}")


def _served(version: Version[Weights] | None, task: Task) -> ServedWeights | None:
    if version is None:
        return None
    lag = None if task.trainer_step is None else task.trainer_step - version.trainer_step
    return ServedWeights(version.version, version.trainer_step, version.age_seconds(), lag)


@contextmanager
def _timed(stages: Stages, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        setattr(stages, stage, getattr(stages, stage) + time.perf_counter() - started)
