"""What became of the last versions of the weights: a bounded list for people who ask why."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum

KEPT = 32


class Outcome(Enum):
    """What happened to a version."""

    SERVED = "served"
    REFUSED = "refused"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Event:
    """What happened to a version, `times` in a row. `trainer_step` is None if the version's manifest could not be read;
    `at` is the moment of the last time, in Unix seconds."""

    version: int
    trainer_step: int | None
    outcome: Outcome
    reason: str = ""
    at: float = field(default_factory=time.time)
    times: int = 1


class History:
    """The last events, oldest first. Its owner locks."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)

    def add(self, event: Event) -> None:
        """What happens again at once is counted, so that retries do not push everything else out."""
        last = self._events[-1] if self._events else None
        if last is not None and replace(event, at=last.at, times=last.times) == last:
            self._events[-1] = replace(event, times=last.times + 1)
        else:
            self._events.append(event)

    def events(self) -> list[Event]:
        """The events, oldest first."""
        return list(self._events)
