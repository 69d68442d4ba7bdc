"""What a selection brought, and what all selections together cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import selector_pb2 as pb

from selector_client.selecting.exclusions import Excluded, indices_of, read_exclusions

# Why the newest weights may not be served. These are shown from the start, for Prometheus needs a first value.
UNSERVED = {
    pb.SYNC_STATE_REJECTED: "rejected",
    pb.SYNC_STATE_DISCONNECTED: "disconnected",
    pb.SYNC_STATE_PINNED: "pinned",
}


T = TypeVar("T")


@dataclass(frozen=True)
class Prefiltered:
    """Of so many candidates the reference's loss was `known` and `unknown`, and so many were `left_out` because others
    have a lower one."""

    known: int
    unknown: int
    left_out: int


@dataclass(frozen=True)
class Locality:
    """How alike candidates are, by the mean cosine of the reference's image embeddings: `adjacent` ones in the
    super-batch, and ones at `random`. `near_duplicates` is the share of the picks with a near-duplicate among the
    candidates."""

    adjacent: float
    random: float
    near_duplicates: float


@dataclass(frozen=True)
class Selection:
    """`indices` are int64 [b] into the super-batch, in the order of the draw. `scores` are float32 [b] in nats, or None
    if nothing was scored.

    `fallback` is empty, or says why this is a uniform pick made by the client. `objective` and `objective_uniform` are
    nats per example (of learnability, unless another criterion was asked for). `weights_version` and its neighbours
    tell which learner scored, and are None if none did. `stale` says that those weights are older than the settings, or
    the sidecar's, accept. `cached_references` is how many candidates the reference did not have to embed again, and
    `not_examined` how many nobody looked at, because all that was needed of them was in a cache.

    `excluded` has the candidates that were left out because they cannot be used, by reason: "missing", "unreadable",
    "format", "too_large", "text", "value" or "repeated". A uniform pick has to take some of them where fewer than b
    others are left; they come last, and `unusable` has them. `captions` is int64 [b], which of its captions was shown
    of each pick, or None if no candidate came with a list of them.

    The first `explored` picks were drawn uniformly (setting explore). `prefiltered` says what the prefilter did, if
    there is one. With the setting return_losses, `learner_losses` and `reference_losses`, float32 [b] in nats, are the
    picks' own losses, as far as those models looked at them. `locality` says how alike the candidates are, if the
    reference looked at all of them."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None
    fallback: str = ""
    seed: int = 0
    objective: float | None = None
    objective_uniform: float | None = None
    weights_version: int | None = None
    weights_step: int | None = None
    weights_age_seconds: float | None = None
    weights_lag_steps: int | None = None
    stale: bool = False
    cached_references: int = 0
    not_examined: int = 0
    excluded: Mapping[str, Excluded] = field(default_factory=dict)
    captions: NDArray[np.int64] | None = None
    explored: int = 0
    prefiltered: Prefiltered | None = None
    learner_losses: NDArray[np.float32] | None = None
    reference_losses: NDArray[np.float32] | None = None
    locality: Locality | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def unusable(self) -> NDArray[np.int64]:
        """Those of `indices` that cannot be used, in their order: int64, and empty unless this is a uniform pick from
        too few usable candidates."""
        return self.indices[np.isin(self.indices, indices_of(self.excluded))]

    @staticmethod
    def from_response(response: pb.SelectResponse, candidates: int, picks: int) -> "Selection":
        """Reads an answer. Raises ValueError if it is not exactly `picks` different indices below `candidates`, with
        one score and one loss each or none at all, or if what it says was left out are no candidates, or picked ones,
        or if it counts more of them than there are."""
        indices = np.fromiter(response.indices, np.int64, len(response.indices))
        if len(indices) != picks or len(np.unique(indices)) != picks or indices.max(initial=-1) >= candidates:
            raise ValueError(f"the server returned {len(indices)} indices that are not {picks} of {candidates}")
        weights: Any = response.weights if response.HasField("weights") else None
        excluded = read_exclusions(response.exclusions, candidates)
        if response.explored > picks:
            raise ValueError(f"the server returned {response.explored} uniform picks of {picks}")
        _check_prefiltered(response.prefiltered, candidates, picks)
        selection = Selection(
            indices=indices,
            scores=_floats("scores", response.scores, picks),
            seed=response.seed,
            objective=response.objective if response.HasField("objective") else None,
            objective_uniform=response.objective_uniform if response.HasField("objective_uniform") else None,
            weights_version=weights and weights.version,
            weights_step=weights and weights.trainer_step,
            weights_age_seconds=weights and weights.age_seconds,
            weights_lag_steps=weights.lag_steps if weights and weights.HasField("lag_steps") else None,
            stale=response.stale,
            cached_references=response.cached_references,
            not_examined=response.not_examined,
            excluded=excluded,
            explored=response.explored,
            prefiltered=_fields(Prefiltered, response, "prefiltered"),
            learner_losses=_floats("learner_losses", response.learner_losses, picks),
            reference_losses=_floats("reference_losses", response.reference_losses, picks),
            locality=_fields(Locality, response, "locality"),
            stage_seconds={stage.name: value for stage, value in response.stages.ListFields()},
        )
        if len(selection.unusable):
            raise ValueError("the server picked candidates that it says were left out")
        return selection


def _check_prefiltered(told: pb.Prefiltered, candidates: int, picks: int) -> None:
    """Raises ValueError for counts that cannot be those of so many candidates, of which so many were picked."""
    most = min(told.known, candidates - picks)
    if told.known + told.unknown > candidates or told.left_out > most:
        counts = f"{told.known} known, {told.unknown} unknown and {told.left_out} left out"
        raise ValueError(f"the server counts {counts} of {candidates} candidates, {picks} of them picked")


def _floats(name: str, values: Any, picks: int) -> NDArray[np.float32] | None:
    """One finite number for each pick; None if there are none at all. Raises ValueError if there are others."""
    if len(values) not in (0, picks):
        raise ValueError(f"the server returned {len(values)} {name} of {picks} picks")
    array = np.fromiter(values, np.float32, len(values))
    if not np.isfinite(array).all():
        raise ValueError(f"the server returned {name} that are not finite")
    return array if values else None


def _fields(kind: type[T], response: pb.SelectResponse, name: str) -> T | None:
    """The message of that name as a dataclass that has its fields; None if it is not there."""
    if not response.HasField(name):  # type: ignore[arg-type]
        return None
    message = getattr(response, name)
    return kind(**{one.name: getattr(message, one.name) for one in fields(kind)})  # type: ignore[arg-type]


class SelectionCounts:
    """The counts that a selector and a loader both keep. Their dataclasses inherit the rule by which they grow."""

    candidates: int
    picks: int
    stale: int
    not_examined: int
    fallbacks: Counter[str]
    excluded: Counter[str]

    def count(self, selection: Selection, candidates: int) -> None:
        """Counts one selection from so many candidates."""
        self.candidates += candidates
        self.picks += len(selection.indices)
        self.stale += selection.stale
        self.not_examined += selection.not_examined
        for reason, one in selection.excluded.items():
            self.excluded[reason] += len(one.indices)
        if selection.fallback:
            self.fallbacks[selection.fallback] += 1


@dataclass
class Statistics(SelectionCounts):
    """What a selector counted since its start. `seconds` were spent in requests, `fallbacks` counts uniform sub-batches
    by reason, `stale` counts selections scored by older weights than the settings accept, and `retries` counts requests
    that were sent again; `renewals` counts connections that were given up after deadlines in a row. `excluded` counts
    candidates that were left out, by reason, and `not_examined` those that nobody looked at, for they were in a cache.
    `unserved` counts selections whose sidecar did not serve the newest weights, by its state ("rejected",
    "disconnected", "pinned"). `locality` is the last one that was told."""

    requests: int = 0
    candidates: int = 0
    picks: int = 0
    seconds: float = 0.0
    stale: int = 0
    retries: int = 0
    renewals: int = 0
    not_examined: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    weights_versions: set[int] = field(default_factory=set)
    locality: Locality | None = None
    unserved: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(UNSERVED.values(), 0)))

    def add(self, selection: Selection, candidates: int, seconds: float) -> None:
        """Counts a request that has ended, by whatever it brought."""
        self.count(selection, candidates)
        self.requests += 1
        self.seconds += seconds
        if selection.weights_version is not None:
            self.weights_versions.add(selection.weights_version)
        self.locality = selection.locality or self.locality
