"""A selection as the engine sees it: arrays and settings, no protobuf, no grpc."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.sampling import Criterion, Loss, Needs, Plan, Policy
from selector_server.sampling.quality import Quality
from selector_server.weights.freshness import Freshness

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Samples:
    """Raw candidates: pixels uint8 [B, H, W, C] or files; tokens int [B, T] or UTF-8 texts; `ids` are names of the
    candidates, all different, or empty."""

    images: NDArray[np.uint8] | list[bytes]
    texts: NDArray[np.integer[Any]] | list[bytes]
    ids: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class ModelEmbeddings:
    """One model's float [B, D] embeddings, logit scale and bias."""

    image: Floats
    text: Floats
    scale: float
    bias: float


@dataclass(frozen=True)
class Embeddings:
    learner: ModelEmbeddings | None
    reference: ModelEmbeddings | None


@dataclass(frozen=True)
class Losses:
    """Float [B] per model."""

    learner: Floats | None
    reference: Floats | None


@dataclass(frozen=True)
class Member:
    """Whose task this is among the data-parallel ranks that select as one: those of the same group and trainer step.
    0 <= rank < world_size, and world_size > 1."""

    group: str
    step: int
    rank: int
    world_size: int


@dataclass(frozen=True)
class Task:
    """One super-batch and how to pick from it. `criterion` and `loss` matter to every policy but uniform."""

    candidates: Samples | Embeddings | Losses
    size: int
    policy: Policy
    criterion: Criterion
    loss: Loss
    plan: Plan
    freshness: Freshness = field(default_factory=Freshness)
    request_id: str = ""
    member: Member | None = None

    @property
    def needs_weights(self) -> bool:
        """Whether this server's learner scores it."""
        encoded = isinstance(self.candidates, Samples) and self.policy.needs is not Needs.NOTHING
        return encoded and self.criterion.needs_learner


@dataclass
class Stages:
    """Seconds spent in each stage."""

    receive: float = 0.0
    queue: float = 0.0
    cache: float = 0.0
    preprocess: float = 0.0
    encode_learner: float = 0.0
    encode_reference: float = 0.0
    sample: float = 0.0
    wait: float = 0.0
    group: float = 0.0


@dataclass(frozen=True)
class ServedWeights:
    """The learner version that scored. Age in seconds; lag in trainer steps if the request named its step. `stale`:
    older than the request accepts."""

    version: int
    trainer_step: int
    age_seconds: float
    lag_steps: int | None
    stale: bool


@dataclass(frozen=True)
class Result:
    """`indices` int64 [b] in draw order; `scores` float64 [b]; objectives per example in nats; `quality` by own
    scores. Scores, objectives and quality are None for the uniform policy; of ranks that select as one, the quality of
    all is told with rank 0's share."""

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
    stages: Stages = field(default_factory=Stages)
