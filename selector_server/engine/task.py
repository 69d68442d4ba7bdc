"""What a request asks for and what it gets, as the engine sees them: arrays and settings, no protobuf, no grpc."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from selector_server.engine.annotations import NOTHING, Annotations
from selector_server.engine.arrays import ModelEmbeddings
from selector_server.engine.closed import ALL_OPEN, Closed
from selector_server.sampling import Criterion, Loss, Needs, Plan, Policy
from selector_server.sampling.locality import Locality
from selector_server.sampling.quality import Quality
from selector_server.weights.freshness import Freshness


class SuperBatch(Protocol):
    """What a task must know of its candidates, in whatever form they came."""

    @property
    def size(self) -> int:
        """B, the number of candidates."""

    @property
    def encoded(self) -> bool:
        """Whether this form is encoded by models of this server."""


C_co = TypeVar("C_co", bound=SuperBatch, covariant=True)
D = TypeVar("D", bound=SuperBatch)


@dataclass(frozen=True)
class Member:
    """Which of the data-parallel ranks that select as one a request is for: those of the same group and trainer step.
    0 <= rank < world_size, and world_size > 1."""

    group: str
    step: int
    rank: int
    world_size: int


class BadSamples(Enum):
    """What happens to candidates that cannot be used: the request is refused, or they are left out."""

    REFUSE = "refuse"
    EXCLUDE = "exclude"


@dataclass(frozen=True)
class Rule:
    """How candidates are compared: by themselves, in pairs, by which loss, and what keeps some of them out, as
    PairScores and prefilter.py have it. It matters to every policy but uniform."""

    criterion: Criterion
    pair_criterion: Criterion
    loss: Loss
    prefilter: float | None = None
    max_similarity: float | None = None

    @property
    def needs_learner(self) -> bool:
        return self.criterion.needs_learner or self.pair_criterion.needs_learner

    @property
    def needs_reference(self) -> bool:
        return self.criterion.needs_reference or self.pair_criterion.needs_reference

    @property
    def name(self) -> str:
        """What errors call it."""
        own, pairs = self.criterion.name, self.pair_criterion.name
        return own if own == pairs else f"{own} with pairs by {pairs}"


@dataclass(frozen=True)
class Task(Generic[C_co]):
    """One super-batch and how to pick from it. The task is refused if a larger share of the candidates than
    `max_excluded_share` is left out. `recent` are picks of earlier steps as the reference sees them. `return_losses`:
    the result has the picks' own losses. `annotations` are for those who look on."""

    candidates: C_co
    policy: Policy
    rule: Rule
    plan: Plan
    freshness: Freshness = field(default_factory=Freshness)
    bad_samples: BadSamples = BadSamples.REFUSE
    max_excluded_share: float = 0.5
    recent: ModelEmbeddings | None = None
    return_losses: bool = False
    annotations: Annotations = NOTHING

    @property
    def excludes(self) -> bool:
        """Whether candidates that cannot be used are left out."""
        return self.bad_samples is BadSamples.EXCLUDE

    @property
    def size(self) -> int:
        """B, the number of candidates."""
        return self.candidates.size

    @property
    def encoded(self) -> bool:
        """Whether models of this server encode these candidates."""
        return self.candidates.encoded and self.policy.needs is not Needs.NOTHING

    @property
    def needs_weights(self) -> bool:
        """Whether this server's learner scores the candidates."""
        return self.encoded and self.rule.needs_learner

    def of(self, candidates: D, plan: Plan | None = None) -> "Task[D]":
        """The same task for other candidates, drawn by another plan if one is given."""
        settings: dict[str, Any] = vars(self) | {"candidates": candidates, "plan": plan or self.plan}
        return Task(**settings)


@dataclass(frozen=True)
class ServedWeights:
    """The learner version that scored. Age in seconds; lag in trainer steps if the request named its step. `stale`:
    it is older than the request accepts."""

    version: int
    trainer_step: int
    age_seconds: float
    lag_steps: int | None
    stale: bool


@dataclass(frozen=True)
class OwnLosses:
    """The loss of each pick by itself, float64 [b], by learner and reference; None for a model that did not look at
    them. The arrays are read-only."""

    learner: NDArray[np.float64] | None = None
    reference: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        _freeze(self.learner, self.reference)

    def at(self, rows: NDArray[Any]) -> "OwnLosses":
        """Those of some picks."""
        learner, reference = (None if one is None else one[rows] for one in (self.learner, self.reference))
        return OwnLosses(learner, reference)


@dataclass(frozen=True)
class Result:
    """`indices` int64 [b] in draw order; `scores` float64 [b]; objectives per example in nats; `quality` by own
    scores. Scores, objectives and quality are None for the uniform policy; of ranks that select as one, the quality of
    all is told with rank 0's share. The arrays are read-only. `losses` are there if the task asks for them."""

    indices: NDArray[np.int64]
    plan: Plan
    policy: str
    scores: NDArray[np.float64] | None
    objective: float | None
    objective_uniform: float | None
    weights: ServedWeights | None
    cached: int = 0  # candidates whose reference embeddings were not computed again
    uncached: int = 0  # those that were looked up in vain
    quality: Quality | None = None
    closed: Closed = ALL_OPEN  # candidates that could not be picked
    not_examined: int = 0  # candidates whose image and text nobody looked at
    losses: OwnLosses | None = None
    locality: Locality | None = None  # None where no reference looked at the candidates

    def __post_init__(self) -> None:
        _freeze(self.indices, self.scores)


def _freeze(*arrays: NDArray[Any] | None) -> None:
    """Makes those that are there read-only."""
    for array in arrays:
        if array is not None:
            array.setflags(write=False)
