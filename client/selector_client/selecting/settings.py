"""How a selector picks: the settings of every request, checked where the trainer gives them."""

from dataclasses import dataclass
from typing import Any

from selector_proto.contract import DEFAULT_FILTER_RATIO
from selector_proto.contract import sub_batch_size as picks_of
from selector_proto.v1 import selector_pb2 as pb


class TooFew(ValueError):
    """A super-batch has too few candidates to pick the sub-batch from."""


@dataclass(frozen=True)
class Settings:
    """How to pick; None leaves a setting to the server's default. The contract (selector.proto) has the limits.

    Without a policy the server takes the rule that was measured best: for the sigmoid loss and learnability, joint
    selection whose pairs only the reference judges, with gain 1, and prefilter 2.5 where the reference's losses can be
    known before it encodes: from the server's cache, by ids, or from embeddings that come along. `policy="joint"` is
    JEST as published, with gain 100.

    Raises ValueError, which names the setting, its value and the limit."""

    run: str = ""
    policy: str = ""
    criterion: str = "learnability"
    # What a pair of picks is worth: a criterion, None for the same one, or "none" if pairs do not count.
    pair_criterion: str | None = None
    # So many candidates a pick go on, those of lowest reference loss, before anything is decoded (where it is known).
    prefilter: float | None = None
    # No two picks have images, or texts, of a larger cosine, as long as others are left.
    max_similarity: float | None = None
    # So large a share of the picks is uniform.
    explore: float | None = None
    # Whether a Selection has the picks' own losses.
    return_losses: bool = False
    loss: str | None = None
    sub_batch_size: int | None = None
    filter_ratio: float | None = None
    chunks: int | None = None
    gain: float | None = None
    draw: str = "sample"
    min_weights_version: int = 0
    max_lag_steps: int | None = None
    max_age_seconds: float | None = None
    when_stale: str | None = None
    # Data-parallel ranks may select as one, through one sidecar: they share the name of a group that the run chooses,
    # and `rank` says which of the `world_size` ranks this one is.
    group: str = ""
    rank: int = 0
    world_size: int = 1
    # Candidates that cannot be used are left out, and the others compete. If it is strict, the first of them fails the
    # selection. A selection fails if more than the share `max_excluded_share` of its candidates is left out, and there
    # is a warning if, of many selections, it is more than `warn_excluded_share`.
    strict: bool = False
    max_excluded_share: float = 0.5
    warn_excluded_share: float = 0.05

    def __post_init__(self) -> None:
        if self.sub_batch_size is not None and self.filter_ratio is not None:
            raise ValueError("give sub_batch_size or filter_ratio, not both")
        if self.filter_ratio is not None and not 0 < self.filter_ratio < 1:
            raise ValueError(f"filter_ratio is {self.filter_ratio}; must lie between 0 and 1, both excluded")
        self._check_rule()
        _enum(pb.Draw, "DRAW", self.draw)
        if self.loss is not None:
            _enum(pb.Loss, "LOSS", self.loss)
        if self.max_lag_steps is not None and self.max_lag_steps < 0:
            raise ValueError(f"max_lag_steps is {self.max_lag_steps}; must not be negative")
        if self.max_age_seconds is not None and not 0 < self.max_age_seconds <= 1e9:
            raise ValueError(f"max_age_seconds is {self.max_age_seconds}; must be positive and at most 1e9")
        if self.when_stale is not None:
            _enum(pb.StalenessPolicy, "STALENESS_POLICY", self.when_stale, "when_stale")
        if not 0 < self.max_excluded_share <= 1:
            raise ValueError(f"max_excluded_share is {self.max_excluded_share}; must be above 0 and at most 1")
        if not 0 <= self.warn_excluded_share <= 1:
            raise ValueError(f"warn_excluded_share is {self.warn_excluded_share}; must be 0 to 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; must be 0 to world_size - 1, and world_size is {self.world_size}")
        if self.world_size > 1 and not self.group:
            raise ValueError(f"group is ''; {self.world_size} ranks that select as one need a name for their group")

    def _check_rule(self) -> None:
        if _enum(pb.Criterion, "CRITERION", self.criterion) == pb.CRITERION_NONE:
            raise ValueError("criterion is 'none'; a candidate by itself must count (pair_criterion may be 'none')")
        if self.pair_criterion is not None:
            _enum(pb.Criterion, "CRITERION", self.pair_criterion, "pair_criterion")
        if self.prefilter is not None and not 1 <= self.prefilter <= 1e6:
            raise ValueError(f"prefilter is {self.prefilter}; must be 1 to 1e6 candidates a pick")
        for name in ("max_similarity", "explore"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                raise ValueError(f"{name} is {value}; must lie between 0 and 1, both excluded")
        for name in ("prefilter", "max_similarity"):
            if (value := getattr(self, name)) is not None and not self.needs("reference"):
                raise ValueError(f"{name} is {value}; the criteria must look at the reference")
        if self.loss == "softmax" and self.pair_criterion not in {None, self.criterion}:
            values = f"pair_criterion is {self.pair_criterion!r} beside criterion {self.criterion!r}"
            raise ValueError(f"{values}; they may differ for the sigmoid loss only")
        if self.loss == "softmax" and self.return_losses:
            raise ValueError("return_losses is set; a candidate by itself has no loss of its own by softmax")

    @property
    def recommended(self) -> bool:
        """Whether the server chooses the rule."""
        return not self.policy and self.criterion == "learnability" and self.loss != "softmax"

    @property
    def shortlists(self) -> bool:
        """Whether candidates that have ids only are read after the sidecar has said which of them go on. Ranks that
        select as one must send equally many, and so they send all."""
        return self.prefilter is not None and self.policy != "uniform" and self.world_size == 1

    def needs(self, model: str) -> bool:
        """Whether the "learner", or the "reference", looks at candidates."""
        looks = {"learner": {"learnability", "hard-learner"}, "reference": {"learnability", "easy-reference"}}[model]
        return not looks.isdisjoint({self.criterion, self.pair_criterion or self.criterion})

    def picks(self, candidates: int, sub_batch_size: int | None = None) -> int:
        """Returns b, the size of the sub-batch, for a super-batch of `candidates`; a `sub_batch_size` given here counts
        for this one. Raises TooFew, a ValueError, if so many cannot be picked from it."""
        picks = self.sub_batch_size if sub_batch_size is None else sub_batch_size
        if picks is None:
            picks = picks_of(candidates, self.filter_ratio or DEFAULT_FILTER_RATIO)
        if not 1 <= picks <= candidates:
            raise TooFew(f"{picks} picks of {candidates} candidates are not possible")
        return picks

    def header(self) -> pb.Selection:
        """Returns the settings as a message, which still lacks candidates, seed and step."""
        optional = {
            "sub_batch_size": self.sub_batch_size,
            "filter_ratio": self.filter_ratio,
            "chunks": self.chunks,
            "gain": self.gain,
            "pair_criterion": None
            if self.pair_criterion is None
            else _enum(pb.Criterion, "CRITERION", self.pair_criterion, "pair_criterion"),
            "prefilter": self.prefilter,
            "max_similarity": self.max_similarity,
            "explore": self.explore,
            "loss": None if self.loss is None else _enum(pb.Loss, "LOSS", self.loss),
            "max_lag_steps": self.max_lag_steps,
            "max_age_seconds": self.max_age_seconds,
            "when_stale": None
            if self.when_stale is None
            else _enum(pb.StalenessPolicy, "STALENESS_POLICY", self.when_stale, "when_stale"),
            "bad_samples": None if self.strict else pb.BAD_SAMPLES_EXCLUDE,
            "max_excluded_share": None if self.strict else self.max_excluded_share,
        }
        return pb.Selection(
            run=self.run,
            policy=self.policy,
            criterion=_enum(pb.Criterion, "CRITERION", self.criterion),
            draw=_enum(pb.Draw, "DRAW", self.draw),
            recommended=self.recommended,
            return_losses=self.return_losses,
            min_weights_version=self.min_weights_version,
            group=self.group,
            rank=self.rank,
            world_size=self.world_size,
            **{name: value for name, value in optional.items() if value is not None},  # type: ignore[arg-type]
        )


def _enum(enum: Any, prefix: str, name: str, field: str = "") -> Any:
    """Returns the value of a protobuf enum by its short lower-case name, as users write it. Raises ValueError."""
    key = f"{prefix}_{name.upper().replace('-', '_')}"
    if key not in enum.keys() or key.endswith("UNSPECIFIED"):  # noqa: SIM118 - the enum wrapper is no dict
        known = [k.removeprefix(f"{prefix}_").lower().replace("_", "-") for k in enum.keys()[1:]]
        raise ValueError(f"{field or prefix.lower()} is {name!r}; must be one of {', '.join(known)}")
    return enum.Value(key)
