"""Requests that wait for newer weights: on the event loop, beside the device's worker and its queue."""

import asyncio
import time

from selector_server.engine.admission import Admission
from selector_server.engine.selection import Selection
from selector_server.engine.task import Task
from selector_server.errors import Unavailable
from selector_server.telemetry.metrics import Metrics

# How often the store is looked at: a look is a few comparisons.
TICK_SECONDS = 0.02
# Left of the deadline when a wait is given up, at most a quarter of it: time for the refusal to say why.
REACH_SECONDS = 0.25
# Of a request without a deadline.
LONGEST_SECONDS = 600.0


class Waiting:
    """`selection` knows whether the served weights are new enough; a drain ends every wait."""

    def __init__(self, selection: Selection, admission: Admission, metrics: Metrics) -> None:
        self._selection, self._admission, self._metrics = selection, admission, metrics

    async def until_fresh(self, task: Task, remaining: float | None) -> float:
        """Returns the seconds waited, 0 if the task need not wait. `remaining` seconds are left of its deadline.

        Raises StaleWeights when that comes within reach, Unavailable when the server drains.
        """
        if self._selection.awaited(task, 0.0) is None:
            return 0.0
        self._metrics.stale.labels("wait").inc()
        started = time.monotonic()
        seconds = LONGEST_SECONDS if remaining is None else remaining - min(REACH_SECONDS, remaining / 4)
        while (error := self._selection.awaited(task, time.monotonic() - started)) is not None:
            if self._admission.closed:
                raise Unavailable("server", "draining", "it waits for no weights any more; try another one")
            left = started + seconds - time.monotonic()
            if left <= 0:
                raise error
            await asyncio.sleep(min(TICK_SECONDS, left))
        return time.monotonic() - started
