"""Scores a task and picks: the one path from candidates to indices. It runs on the worker's thread."""

import time
from collections.abc import Callable, Hashable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.engine.candidates.base import Candidates, Scorable
from selector_server.engine.models import Models
from selector_server.engine.request import Request, StageSeconds
from selector_server.engine.task import OwnLosses, Result, ServedWeights, Task
from selector_server.errors import NotPossible
from selector_server.sampling import Needs, PairScores, Picks, ScalarScores, Scores
from selector_server.sampling.locality import Locality, near_duplicates, neighbours
from selector_server.sampling.policies import pick_open
from selector_server.sampling.quality import assess
from selector_server.telemetry.quality_metrics import NATS


class Observer(Protocol):
    """Looks at what was selected, for people. It is called on the thread that drew, and so it is quick; it raises
    nothing."""

    def observe(self, task: Task[Scorable], scores: Scores, result: Result, near: Tensor | None) -> None:
        """The `result` was drawn from these scores; `near` is that of sampling.Picks."""


class Scorer:
    """Scores and picks with the models of this server. Without an observer nothing is done for it."""

    def __init__(self, models: Models, observer: Observer | None = None) -> None:
        self._models, self._observer, self._pace = models, observer, Pace()

    def least_seconds(self, task: Task[Candidates] | Task[Scorable], found: bool) -> Callable[[str], float]:
        """The fewest seconds that the task takes from a stage on, by what tasks like it took lately. `found` says
        whether the cache was asked already: how many references it lacks is not known before."""
        kind, size = self._work(task, found)
        return lambda stage: self._pace.left(kind, size, stage)

    def select(self, task: Task[Scorable], request: Request) -> Result:
        """Picks. Raises SelectorError; Abandoned and TooLate at the next step after the client left or its deadline
        passed."""
        with torch.inference_mode():
            scores, weights = self.score(task, request)
            request.begin("sample", "sample")
            with request.timed("sample"):
                _check_shares(task)
                picks = pick_open(task.policy, scores, task.plan)
                result = self._result(task, scores, weights, picks)
            if self._observer is not None:
                self._observer.observe(task, scores, result, picks.near)
        self._pace.note(*self._work(task, found=True), request.stages)
        return result

    def score(self, task: Task[Scorable], request: Request) -> tuple[Scores, ServedWeights | None]:
        """What `select` draws from, and the weights that scored. Raises as it does."""
        scores: Scores
        weights: ServedWeights | None
        with torch.inference_mode():
            if task.policy.needs is Needs.NOTHING:
                scores, weights = ScalarScores(torch.zeros(task.size, device=self._models.device)), None
            else:
                scores, weights = task.candidates.scores(task, self._models, request)
            if closed := task.candidates.closed:
                scores = scores.with_open(torch.from_numpy(closed.open(task.size)).to(self._models.device))
            return scores, weights

    def _result(self, task: Task[Scorable], scores: Scores, weights: ServedWeights | None, picks: Picks) -> Result:
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
            cached=task.candidates.cached,
            uncached=task.candidates.uncached,
            quality=assess(scores.own(), picks.indices, task.plan, NATS, scores.open) if scored else None,
            closed=task.candidates.closed,
            not_examined=task.candidates.not_examined,
            losses=own_losses(task, scores, picks.indices),
            locality=locality(task, scores, picks.indices),
        )

    def _work(self, task: Task[Any], found: bool) -> tuple[Hashable, int]:
        """Which tasks are alike, and how much there is to do. Before the cache was asked, that is not known."""
        candidates = task.candidates
        cached = self._models.cache is not None and candidates.keyed
        size = task.size + candidates.uncached if found else 0 if cached else task.size
        return (candidates.form, task.policy.name, task.rule, cached, candidates.reference_brought), size


class Pace:
    """What stages of a selection took lately, so that nothing is begun that comes too late.

    A stage of a task takes at least as long as the fastest of the recent ones that were alike and not larger. Where
    there are none it may take no time at all: in doubt the work is done. Old experience is forgotten, so that a machine
    that was slow for a while is tried again. Written by the worker's thread and read by all: what is replaced is
    replaced whole.
    """

    STAGES = ("preprocess", "encode_learner", "encode_reference", "sample")  # in their order
    REMEMBERED = 16
    REMEMBERED_SECONDS = 30.0

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[tuple[float, int, dict[str, float]], ...]] = {}

    def note(self, kind: Hashable, size: int, seconds: StageSeconds) -> None:
        """A task of this kind, with so much to do, took these seconds in each stage."""
        entry = (time.monotonic(), size, asdict(seconds))
        self._seen[kind] = (*self._seen.get(kind, ()), entry)[-self.REMEMBERED :]

    def left(self, kind: Hashable, size: int, stage: str) -> float:
        """The least seconds that a task takes from the beginning of `stage` on."""
        oldest = time.monotonic() - self.REMEMBERED_SECONDS
        alike = [took for when, count, took in self._seen.get(kind, ()) if when > oldest and count <= size]
        stages = self.STAGES[self.STAGES.index(stage) :]
        return min((sum(took[name] for name in stages) for took in alike), default=0.0)


def own_losses(task: Task[Any], scores: Scores, rows: Tensor) -> OwnLosses | None:
    """The own losses of these candidates, int64 [n], if the task asks for them."""
    if not task.return_losses or not isinstance(scores, PairScores):
        return None
    learner, reference = (None if one is None else one.cpu().numpy() for one in scores.at(rows).own_losses())
    return OwnLosses(learner, reference)


def locality(task: Task[Scorable], scores: Scores, picks: Tensor) -> Locality | None:
    """How alike the open candidates are, of which some were picked, int64 [n], if the reference looked at them. Those
    that a prefilter keeps are more alike than what it saw, so that it is asked for neighbours. Those of a shortlist are
    not all, and nothing is told."""
    if not isinstance(scores, PairScores) or scores.reference is None or task.plan.positions is not None:
        return None
    image, prefiltered = scores.reference.image, task.candidates.closed.prefiltered
    if prefiltered is not None:
        beside = prefiltered.neighbours
    elif scores.open is None:
        beside = neighbours(image, torch.arange(len(image), device=image.device), task.size // task.plan.ranks)
    else:
        rows = scores.open.nonzero().flatten()
        beside = neighbours(image[rows], rows, task.size // task.plan.ranks)
    if beside is None:
        return None
    return Locality(beside.adjacent, beside.random, near_duplicates(image, picks, scores.open))


def _check_shares(task: Task[Scorable]) -> None:
    """A policy that sees the open candidates only takes them for equal shares of the ranks."""
    closed, ranks = task.candidates.closed, task.plan.ranks
    if ranks == 1 or not closed or task.policy.knows_open:
        return
    counts = closed.open(task.size).reshape(ranks, -1).sum(axis=1).tolist()
    if len(set(counts)) > 1:
        value, limit = repr(task.policy.name), f"needs as many usable candidates on every rank; they have {counts[:8]}"
        raise NotPossible("policy", value, limit)


def _check_picks(task: Task[Scorable], indices: NDArray[np.int64]) -> None:
    """A policy, perhaps somebody else's, must never make the server return fewer, repeated or unknown candidates, nor
    ranks take unequal numbers."""
    right = len(indices) == len(np.unique(indices)) == task.plan.picks
    if not (right and indices.min() >= 0 and indices.max() < task.size):
        raise RuntimeError(f"policy {task.policy.name!r} did not pick {task.plan.picks} different of {task.size}")
    if not task.candidates.closed.open(task.size)[indices].all():
        raise RuntimeError(f"policy {task.policy.name!r} picked candidates that may not be picked")
    ranks, quota = task.plan.ranks, task.plan.picks // task.plan.ranks
    if (np.bincount(indices // (task.size // ranks), minlength=ranks) != quota).any():
        limit = f"does not take equally many candidates of each of {ranks} ranks, so ranks cannot select as one by it"
        raise NotPossible("policy", repr(task.policy.name), limit)
