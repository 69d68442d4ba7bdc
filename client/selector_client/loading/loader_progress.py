"""What became of a loader's super-batches so far."""

from collections import Counter
from dataclasses import dataclass, field

from selector_client.selecting.selection import Selection


@dataclass
class Progress:
    """Of all iterations so far. `wait_seconds` is how long the trainer waited for sub-batches, `step_seconds` how long
    it worked on them; `fallbacks` counts uniform sub-batches by reason, `stale` those that older weights scored than
    the settings accept; `dropped` super-batches were too short."""

    steps: int = 0
    candidates: int = 0
    picks: int = 0
    wait_seconds: float = 0.0
    step_seconds: float = 0.0
    stale: int = 0
    dropped: int = 0
    lag_steps: int | None = None
    fallbacks: Counter[str] = field(default_factory=Counter)

    def add(self, selection: Selection, candidates: int) -> None:
        """Counts a sub-batch that the trainer got."""
        self.steps += 1
        self.candidates += candidates
        self.picks += len(selection.indices)
        self.stale += selection.stale
        self.lag_steps = selection.weights_lag_steps
        if selection.fallback:
            self.fallbacks[selection.fallback] += 1

    def __str__(self) -> str:
        share = self.wait_seconds / max(1e-9, self.wait_seconds + self.step_seconds)
        lag = "" if self.lag_steps is None else f", weights {self.lag_steps} steps old"
        failed = ", ".join(f"{count} x {reason}" for reason, count in self.fallbacks.items()) or "none"
        return f"{self.steps} steps, {share:.1%} of the time waited, fallbacks: {failed}{lag}"
