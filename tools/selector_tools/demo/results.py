"""What the demo measured. The report shows it and adds nothing."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Arm:
    """One training run. `accuracy` holds (step, zero-shot top-1 in 0..1) up to the last step, seconds are by the wall
    clock, `versions` counts the weights versions that scored its picks, and `mislabelled` is the share of its trained
    pairs whose caption belongs to another picture."""

    name: str
    steps: int
    trained: int
    scored: int
    accuracy: list[tuple[int, float]]
    train_seconds: float
    wait_seconds: float
    versions: int
    fallbacks: int
    mislabelled: float

    @property
    def final(self) -> float:
        return self.accuracy[-1][1]

    def steps_to(self, target: float) -> float | None:
        """Returns the step at which accuracy first reaches `target`, interpolated between evaluations, or None."""
        previous_step, previous = 0, 0.0
        for step, value in self.accuracy:
            if value >= target:
                span = value - previous
                return step if span <= 0 else previous_step + (step - previous_step) * (target - previous) / span
            previous_step, previous = step, value
        return None


@dataclass(frozen=True)
class Example:
    """One candidate of a super-batch: its ink, uint8 [32, 32], its caption, the learnability of the pair itself in nats
    as the sidecar scored it, and whether the caption was shuffled."""

    pixels: NDArray[np.uint8]
    caption: str
    score: float
    mislabelled: bool


@dataclass(frozen=True)
class Report:
    """Everything the demo shows. `arms[0]` is uniform. `picked` and `dropped` come from one super-batch at
    `example_step` of the JEST arm. `settings` and `versions` are shown as they are."""

    arms: list[Arm]
    reference_accuracy: float
    pool_mislabelled: float
    example_step: int
    picked: list[Example]
    dropped: list[Example]
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
