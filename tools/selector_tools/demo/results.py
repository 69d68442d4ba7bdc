"""What the demo measured. The report shows it and adds nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Arm:
    """One training run, or the mean of several by different seeds.

    `about` says in a sentence what sets it apart. `accuracy` holds (step, zero-shot top-1 in 0..1) up to the last step,
    and `finals` the last value of each run. Seconds are by the wall clock, `versions` counts the weights versions that
    scored its picks, `concepts` is how many different concepts a batch has in the mean, and `mislabelled` is the share
    of its trained pairs whose caption belongs to another picture."""

    name: str
    about: str
    steps: int
    trained: int
    scored: int
    accuracy: list[tuple[int, float]]
    finals: list[float]
    train_seconds: float
    wait_seconds: float
    versions: int
    fallbacks: int
    concepts: float
    mislabelled: float

    @property
    def final(self) -> float:
        return self.accuracy[-1][1]

    @property
    def selects(self) -> bool:
        """Whether a sidecar picked its batches."""
        return self.scored > 0

    def steps_to(self, target: float) -> float | None:
        """Returns the step at which accuracy first reaches `target`, interpolated between evaluations, or None."""
        previous_step, previous = 0, 0.0
        for step, value in self.accuracy:
            if value >= target:
                span = value - previous
                return step if span <= 0 else previous_step + (step - previous_step) * (target - previous) / span
            previous_step, previous = step, value
        return None


def mean_of(runs: Sequence[Arm]) -> Arm:
    """Returns the mean of an arm's runs, which were evaluated at the same steps. Fallbacks are added up."""
    steps = [step for step, _ in runs[0].accuracy]
    accuracy = np.mean([[value for _, value in run.accuracy] for run in runs], axis=0).tolist()

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return replace(
        runs[0],
        accuracy=list(zip(steps, accuracy, strict=True)),
        finals=[final for run in runs for final in run.finals],
        train_seconds=mean([run.train_seconds for run in runs]),
        wait_seconds=mean([run.wait_seconds for run in runs]),
        fallbacks=sum(run.fallbacks for run in runs),
        concepts=mean([run.concepts for run in runs]),
        mislabelled=mean([run.mislabelled for run in runs]),
    )


@dataclass(frozen=True)
class Inspected:
    """What the sidecar of an arm told the inspector at the arm's end: messages by their calls."""

    arm: str
    answers: dict[str, bytes]


@dataclass(frozen=True)
class Report:
    """Everything the demo shows. `arms[0]` is uniform. `stream` says in a sentence how the pool is read. `inspected`
    is None where no arm selects. `settings` and `versions` are shown as they are."""

    arms: list[Arm]
    reference_accuracy: float
    pool_mislabelled: float
    stream: str
    inspected: Inspected | None
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Arm | None:
        """The arm that ended highest of those that select, if any does."""
        return max((arm for arm in self.arms if arm.selects), key=lambda arm: arm.final, default=None)
