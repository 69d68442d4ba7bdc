"""What a training run records on its way."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """What a training run recorded: `accuracy` holds (step, value), and `rows` the ids of each batch. Seconds, by the
    wall clock and of this process's CPU time, leave evaluation out."""

    accuracy: list[tuple[int, float]] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
