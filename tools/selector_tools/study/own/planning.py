"""How many steps a budget allows, by what a few of them took."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from selector_tools.study.fed import LOOKS

TRIED = 8  # steps that are timed
LEAST_STEPS = 48  # Fewer say nothing.
REFERENCE_SHARE = 0.15  # of the budget goes at most into training references


@dataclass(frozen=True)
class Pace:
    """What a run takes, in seconds by the wall clock: for its start and end, a step, and a look at the validation."""

    beside: float
    step: float
    look: float

    @staticmethod
    def of(run: Mapping[str, Any], elapsed: float) -> "Pace":
        """Reads it off a run, which took so many seconds as a whole."""
        looks = len(run["curve"])
        looking = max(0.0, run["wall_seconds"] - run["train_seconds"]) / looks
        return Pace(elapsed - run["wall_seconds"], run["train_seconds"] / run["cell"]["steps"], looking)

    def seconds(self, steps: int) -> float:
        """Returns what a run of so many steps takes."""
        return self.beside + steps * self.step + LOOKS * self.look


def steps_within(seconds: float, paces: Iterable[Pace], most: int) -> int:
    """Returns how many steps, `most` or fewer, one run at each of these paces can have in so many seconds; 0 if none
    can."""
    paces = list(paces)
    left = seconds - sum(pace.seconds(0) for pace in paces)
    return max(0, min(most, int(left / sum(pace.step for pace in paces))))
