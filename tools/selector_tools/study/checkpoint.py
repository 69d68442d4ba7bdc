"""Lets a training that was stopped go on where its last checkpoint was, to the same end as if it had not been."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from selector_tools.study.learner import Learner
from selector_tools.study.record import Run

SECONDS = 480.0  # Between two checkpoints no more of the work than this can be lost.


class Resumable(Protocol):
    """What feeds a trainer, and can go on from where it was."""

    def state(self) -> dict[str, Any]:
        """Returns where it is, as JSON takes it."""

    def resume(self, state: dict[str, Any]) -> None:
        """Makes it go on from there; it must not have begun."""


@dataclass
class Checkpoint:
    """The last state of one training, in a file. It is written at steps that are multiples of `every`, for weights are
    published there, and the sidecar that scores after a restart must have them at once."""

    path: Path
    feed: Resumable
    every: int
    clock: Callable[[], float] = time.monotonic
    seconds: float = SECONDS
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def restore(self, model: Learner, optimizer: torch.optim.Optimizer, rng: np.random.Generator, run: Run) -> int:
        """Brings everything to where it was, and returns how many steps were done; 0 without a checkpoint."""
        if not self.path.exists():
            return 0
        held = torch.load(self.path, map_location="cpu", weights_only=True)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        told = json.loads(held["told"])
        rng.bit_generator.state = told["rng"]
        run.accuracy = [(step, value) for step, value in told["accuracy"]]
        run.rows = list(held["rows"].numpy())
        run.seconds, run.cpu_seconds = told["seconds"]
        self.feed.resume(told["feed"])
        return len(run.rows)

    def keep(self, model: Learner, optimizer: torch.optim.Optimizer, rng: np.random.Generator, run: Run) -> None:
        """Writes where everything is now, if it is time to."""
        if len(run.rows) % self.every or self.clock() - self._last < self.seconds:
            return
        told = {
            "rng": rng.bit_generator.state,
            "accuracy": run.accuracy,
            "seconds": (run.seconds, run.cpu_seconds),
            "feed": self.feed.state(),
        }
        held = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rows": torch.from_numpy(np.stack(run.rows)),
            "told": json.dumps(told),
        }
        part = self.path.with_suffix(".part")
        torch.save(held, part)
        part.replace(self.path)
        self._last = self.clock()
