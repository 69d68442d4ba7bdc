"""Counts what became of a loader's super-batches."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from selector_client.selecting.selection import Selection, SelectionCounts

log = logging.getLogger(__name__)


@dataclass
class Progress(SelectionCounts):
    """What a loader counted in all its iterations. The trainer waited `wait_seconds` for sub-batches and worked
    `step_seconds` on them; `fallbacks` counts uniform sub-batches by reason, `stale` counts those scored by older
    weights than the settings accept, and `dropped` counts super-batches that had too few candidates. `excluded` counts
    candidates that were left out, by reason, and `not_examined` those that nobody looked at. `lag_steps` is how many
    steps old the weights behind the last sub-batch were, if that is known."""

    steps: int = 0
    candidates: int = 0
    picks: int = 0
    wait_seconds: float = 0.0
    step_seconds: float = 0.0
    stale: int = 0
    dropped: int = 0
    not_examined: int = 0
    lag_steps: int | None = None
    fallbacks: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)

    def add(self, selection: Selection, candidates: int) -> None:
        """Counts a sub-batch that the trainer was given."""
        self.count(selection, candidates)
        self.steps += 1
        self.lag_steps = selection.weights_lag_steps

    def drop(self, size: int, picks: int | None) -> None:
        """Counts a super-batch of `size` candidates that is dropped, and says so the first time."""
        self.dropped += 1
        if self.dropped == 1:
            words = "a super-batch of %d candidates was dropped, because %s are to be picked and fewer can be used"
            log.warning(f"{words}; further ones are only counted (progress.dropped)", size, picks)

    @property
    def wait_share(self) -> float:
        """The share of its time that the trainer waited."""
        return self.wait_seconds / max(1e-9, self.wait_seconds + self.step_seconds)

    def __str__(self) -> str:
        lag = "" if self.lag_steps is None else f", weights {self.lag_steps} steps old"
        dropped = f", {self.dropped} super-batches dropped" if self.dropped else ""
        excluded = self.excluded.total() / max(1, self.candidates)
        left_out = f", {excluded:.1%} of the candidates left out" if excluded else ""
        failed = ", ".join(f"{count} x {reason}" for reason, count in self.fallbacks.items()) or "none"
        return (
            f"{self.steps} steps, {self.wait_share:.1%} of the time waited, fallbacks: {failed}{left_out}{dropped}{lag}"
        )
