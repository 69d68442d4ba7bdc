"""How new weights must be, and what to do with a request when they are not."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from selector_server.errors import StaleWeights
from selector_server.weights.versions import Version


class WhenStale(Enum):
    """What happens to a request that accepts newer weights only."""

    SERVE = "serve"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Freshness:
    """What a request accepts; None accepts any. `below_minimum` is what happens when the served version is below
    `min_version`, `when_stale` what happens when a lag (in steps) or an age (in seconds) is exceeded. They differ since
    a minimum is kept to unless SERVE was asked for by name."""

    min_version: int = 0
    max_lag_steps: int | None = None
    max_age_seconds: float | None = None
    trainer_step: int | None = None
    when_stale: WhenStale = WhenStale.SERVE
    below_minimum: WhenStale = WhenStale.REFUSE

    def breach(self, version: Version[Any] | None, scores: bool) -> "Breach | None":
        """What `version` falls short of; None if it is new enough. A version can be too old only for a
        request that it `scores`."""
        served = 0 if version is None else version.version
        if self.min_version > served:
            shown = "no weights are served" if version is None else f"version {served} is served"
            return Breach("min_weights_version", self.min_version, shown, self.below_minimum)
        if version is None or not scores:
            return None
        if self.max_lag_steps is not None and self.trainer_step is not None:
            lag = self.trainer_step - version.trainer_step
            if lag > self.max_lag_steps:
                shown = f"version {served} of step {version.trainer_step} is served, {lag} steps behind"
                return Breach("max_lag_steps", self.max_lag_steps, shown, self.when_stale)
        if self.max_age_seconds is not None and (age := version.age_seconds()) > self.max_age_seconds:
            doubt = f" ({version.published.doubt})" if version.published.doubt else ""
            shown = f"version {served} is served, {age:.3f} s old{doubt}"
            return Breach("max_age_seconds", self.max_age_seconds, shown, self.when_stale)
        return None


@dataclass(frozen=True)
class Breach:
    """One of the request's bounds that is not kept, what is served instead, and what to do about it."""

    field: str
    value: float
    served: str
    action: WhenStale

    def error(self, reason: str, waited: float | None = None) -> StaleWeights:
        """The error that refuses the request. `reason` says why nothing newer is served, as far as that is known;
        `waited` is in seconds."""
        parts = [self.served, reason, "" if waited is None else f"waited {waited:.2f} s"]
        return StaleWeights(self.field, self.value, "; ".join(part for part in parts if part))
