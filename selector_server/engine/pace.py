"""What stages of a selection took lately: the least that is left to do, so that nothing is begun that comes too late.

A stage of a request takes at least as long as the fastest of the recent ones that were alike and not larger. Where
there are none it may take no time at all: in doubt the work is done. Old experience is forgotten, so that a machine
that was slow for a while is tried again.
"""

import time
from collections.abc import Hashable, Mapping

# In their order, as fields of `Stages`.
STAGES = ("preprocess", "encode_learner", "encode_reference", "sample")
REMEMBERED = 16
REMEMBERED_SECONDS = 30.0


class Pace:
    """Written by the worker's thread and read by all: what is replaced is replaced whole."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[tuple[float, int, Mapping[str, float]], ...]] = {}

    def note(self, kind: Hashable, size: int, seconds: Mapping[str, float]) -> None:
        """A request of this kind, with so much to do, took these seconds in each stage."""
        entry = (time.monotonic(), size, {stage: seconds[stage] for stage in STAGES})
        self._seen[kind] = (*self._seen.get(kind, ()), entry)[-REMEMBERED:]

    def left(self, kind: Hashable, size: int, stage: str) -> float:
        """The least seconds that a request takes from the beginning of `stage` on."""
        oldest = time.monotonic() - REMEMBERED_SECONDS
        alike = [took for when, count, took in self._seen.get(kind, ()) if when > oldest and count <= size]
        stages = STAGES[STAGES.index(stage) :]
        return min((sum(took[name] for name in stages) for took in alike), default=0.0)
