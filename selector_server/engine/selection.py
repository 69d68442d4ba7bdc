"""Scores a task and picks: the one path from candidates to indices. Runs on the worker's thread."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.encoding.cache import Found, ReferenceCache
from selector_server.encoding.model import Model, Weights
from selector_server.engine.caller import Caller
from selector_server.engine.pace import Pace
from selector_server.engine.preparation import Prepared
from selector_server.engine.stopwatch import timed
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
from selector_server.errors import NotPossible, StaleWeights
from selector_server.sampling import Criterion, Embedded, Needs, PairScores, ScalarScores, Scores
from selector_server.sampling.quality import assess
from selector_server.telemetry.quality import NATS
from selector_server.weights.freshness import Breach, WhenStale
from selector_server.weights.versions import SyncState, Version, Versions


@dataclass(frozen=True)
class Scored:
    """Candidates to draw from; `stages` are those of their task."""

    scores: Scores
    weights: ServedWeights | None
    stages: Stages


class Selection:
    """The models of this server and what it does with them. Either model may be missing, and so may the cache."""

    def __init__(
        self,
        device: torch.device,
        learner: Model | None,
        reference: Model | None,
        store: Versions[Weights] | None,
        cache: ReferenceCache | None,
        tile_bytes: int | None,
        fused: bool,
    ) -> None:
        self._tile_bytes, self._fused = tile_bytes, fused
        self._device, self._cache = device, cache
        self._learner, self._reference, self._store = learner, reference, store
        self._pace = Pace()

    def check(self, task: Task) -> None:
        """Raises NotPossible for what this server can never do; cheap, called before the task is queued."""
        if isinstance(task.candidates, Samples) and task.policy.needs is not Needs.NOTHING:
            if task.criterion.needs_learner and self._learner is None:
                raise NotPossible("samples", task.criterion.name, "needs a learner; start the server with --learner")
            if task.criterion.needs_reference and self._reference is None:
                raise NotPossible("samples", task.criterion.name, "needs a reference; start it with --reference")
        breach = self._breach(task, self._current())
        if breach is None or breach.action is WhenStale.SERVE:
            return
        # Without a source nothing newer will ever come.
        if breach.action is WhenStale.REFUSE or self._store is None or self._store.status.state is SyncState.OFF:
            raise breach.error(self._why_not_newer())

    def begin(self, task: Task, found: Found | None, caller: Caller, stage: str, where: str) -> None:
        """To be called before `stage`; the caller's request is at `where` now. Raises Abandoned, and TooLate if less
        time is left than the least that this stage and those after it take."""
        caller.enter(where)
        caller.check(self._pace.left(*self._work(task, found), stage))

    def awaited(self, task: Task, waited: float) -> StaleWeights | None:
        """None unless the task must wait for newer weights; then what to say if it cannot wait any longer."""
        breach = self._breach(task, self._current())
        if breach is None or breach.action is not WhenStale.WAIT:
            return None
        return breach.error(self._why_not_newer(), waited)

    def run(self, prepared: Prepared, caller: Caller) -> Result:
        """Picks. Raises SelectorError; Abandoned and TooLate at the next step after the caller left or its deadline
        passed."""
        result = self._run(prepared, caller)
        self._pace.note(*self._work(prepared.task, prepared.found), vars(result.stages))
        return result

    def _run(self, prepared: Prepared, caller: Caller) -> Result:
        task, stages = prepared.task, prepared.stages
        with torch.inference_mode():
            scores, weights = self._scores(prepared, caller)
            self.begin(task, prepared.found, caller, "sample", "sample")
            with timed(stages, "sample"):
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
                    weights=weights,
                    cached=prepared.cached,
                    uncached=prepared.uncached,
                    quality=assess(scores.own(), picks.indices, task.plan, NATS) if scored else None,
                    stages=stages,
                )

    def score(self, prepared: Prepared, caller: Caller) -> Scored:
        """What `run` would draw from. Raises as it does."""
        with torch.inference_mode():
            return Scored(*self._scores(prepared, caller), prepared.stages)

    def _work(self, task: Task, found: Found | None) -> tuple[tuple[str, str, bool], int]:
        """Which requests are alike, and how much there is to do. Before the cache was asked, that is not known."""
        candidates = task.candidates
        cached = self._cache is not None and isinstance(candidates, Samples) and bool(candidates.ids)
        unknown = 0 if found is None else int((~found.known).sum())
        size = task.size + unknown if found is not None or not cached else 0
        return (type(candidates).__name__, task.policy.name, cached), size

    def _scores(self, prepared: Prepared, caller: Caller) -> tuple[Scores, ServedWeights | None]:
        task, stages = prepared.task, prepared.stages
        criterion = task.criterion
        if task.policy.needs is Needs.NOTHING:
            return ScalarScores(torch.zeros(task.size, device=self._device)), None
        match task.candidates:
            case Losses(learner, reference):
                return ScalarScores(self._combine(criterion, learner, reference)), None
            case Embeddings(learner, reference):
                with timed(stages, "preprocess"):
                    left = self._embedded(learner) if criterion.needs_learner and learner else None
                    right = self._embedded(reference) if criterion.needs_reference and reference else None
                return self._pairs(task, left, right, caller), None
            case Samples() as samples:
                return self._encode(prepared, samples.ids, caller)

    def _encode(self, prepared: Prepared, ids: list[bytes], caller: Caller) -> tuple[Scores, ServedWeights | None]:
        task, served, learner = prepared.task, None, None
        if prepared.learner is not None:
            assert self._learner is not None
            # Taken once: the whole request is scored by this version, whatever arrives meanwhile.
            version = self._current()
            assert version is not None
            breach = self._breach(task, version)
            if breach is not None and breach.action is not WhenStale.SERVE:  # it aged in the queue
                raise breach.error(self._why_not_newer())
            served = _served(version, task, stale=breach is not None)
            self.begin(task, prepared.found, caller, "encode_learner", "encode")
            with timed(prepared.stages, "encode_learner"):
                inputs = prepared.learner
                learner = self._learner.encode(inputs.pixels, inputs.tokens, version.weights, caller.check)
        reference = self._reference_of(prepared, ids, caller) if task.criterion.needs_reference else None
        return self._pairs(task, learner, reference, caller), served

    def _reference_of(self, prepared: Prepared, ids: list[bytes], caller: Caller) -> Embedded:
        """The reference's embeddings of all candidates: known ones from the cache, the others computed and kept."""
        assert self._reference is not None
        weights, found, fresh = self._reference.constant_weights(), prepared.found, None
        if prepared.reference is not None:
            self.begin(prepared.task, found, caller, "encode_reference", "encode")
            with timed(prepared.stages, "encode_reference"):
                inputs = prepared.reference
                fresh = self._reference.encode(inputs.pixels, inputs.tokens, weights, caller.check)
        if found is None:
            assert fresh is not None
            return fresh
        with timed(prepared.stages, "cache"):
            shape = (len(ids), self._reference.bundle.manifest.width)
            image, text = (torch.empty(shape, dtype=torch.float16, device=self._device) for _ in range(2))
            known = torch.from_numpy(found.known)
            image[known], text[known] = (torch.from_numpy(part).to(self._device) for part in (found.image, found.text))
            if fresh is not None:
                # Rounded as if they came from the cache: the first epoch picks as the second one would.
                image[~known], text[~known] = fresh.image.half(), fresh.text.half()
                assert self._cache is not None
                new = [key for key, hit in zip(ids, found.known, strict=True) if not hit]
                self._cache.put_soon(new, image[~known].cpu().numpy(), text[~known].cpu().numpy())
            return Embedded(image.float(), text.float(), weights.scale, weights.bias)

    def _current(self) -> Version[Weights] | None:
        return None if self._store is None else self._store.current

    def _breach(self, task: Task, version: Version[Weights] | None) -> Breach | None:
        return task.freshness.breach(version, task.needs_weights)

    def _why_not_newer(self) -> str:
        return "no learner" if self._store is None else self._store.status.last_error

    def _pairs(self, task: Task, learner: Embedded | None, reference: Embedded | None, caller: Caller) -> PairScores:
        sizes = (self._tile_bytes, self._fused)
        return PairScores(task.criterion, learner, reference, task.loss, *sizes, check=caller.check)

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
    """A policy, perhaps somebody else's, must never make the server return fewer, repeated or unknown candidates, nor
    ranks take unequal numbers."""
    right = len(indices) == len(np.unique(indices)) == task.plan.picks
    if not (right and indices.min() >= 0 and indices.max() < task.size):
        raise RuntimeError(f"policy {task.policy.name!r} did not pick {task.plan.picks} different of {task.size}")
    ranks, quota = task.plan.ranks, task.plan.picks // task.plan.ranks
    if (np.bincount(indices // (task.size // ranks), minlength=ranks) != quota).any():
        limit = f"does not take equally many candidates of each of {ranks} ranks, so ranks cannot select as one by it"
        raise NotPossible("policy", repr(task.policy.name), limit)


def _served(version: Version[Weights], task: Task, stale: bool) -> ServedWeights:
    freshness = task.freshness
    lag = None if freshness.trainer_step is None else freshness.trainer_step - version.trainer_step
    return ServedWeights(version.version, version.trainer_step, version.age_seconds(), lag, stale)
