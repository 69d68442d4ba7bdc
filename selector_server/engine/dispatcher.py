"""Requests that wait for newer weights: on the event loop, beside the device's worker and its queue."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from selector_server.engine.admission import Admission
from selector_server.engine.caller import Caller
from selector_server.engine.preparation import Prepared
from selector_server.engine.selection import Scored, Selection
from selector_server.engine.task import Result, Task
from selector_server.engine.worker import Staged, Worker
from selector_server.errors import Draining, StaleWeights
from selector_server.telemetry import tracing
from selector_server.telemetry.metrics import Metrics
from selector_server.weights.freshness import WhenStale

# How often the store is looked at: a look is a few comparisons.
TICK_SECONDS = 0.02
# Left of the deadline when a wait is given up, at most a quarter of it: time for the refusal to say why.
REACH_SECONDS = 0.25
# Of a request without a deadline.
LONGEST_SECONDS = 600.0

T = TypeVar("T", bound=Staged)


def reach(remaining: float | None) -> float:
    """Seconds that a request may wait with so many left of its deadline; endless without one."""
    return float("inf") if remaining is None else remaining - min(REACH_SECONDS, remaining / 4)


class Waiting:
    """Between preparation and worker. `selection` knows whether the served weights are new enough; a drain ends every
    wait."""

    def __init__(self, selection: Selection, worker: Worker, admission: Admission, metrics: Metrics) -> None:
        self._selection, self._worker = selection, worker
        self._admission, self._metrics = admission, metrics

    async def run(self, prepared: Prepared, caller: Caller) -> Result:
        """The task's result, once the weights are as new as it accepts. Raises StaleWeights when the deadline comes
        within reach, TooLate when it cannot be kept, Draining when the server drains."""
        return await self._fresh(prepared, caller, lambda: self._worker.submit(prepared, caller))

    async def score(self, prepared: Prepared, caller: Caller) -> Scored:
        """As `run`, but for a draw that is made elsewhere."""
        score = self._selection.score
        return await self._fresh(prepared, caller, lambda: self._worker.call(score, prepared, caller))

    async def _fresh(self, prepared: Prepared, caller: Caller, submit: Callable[[], Awaitable[T]]) -> T:
        task, waited = prepared.task, 0.0
        caller.enter("queue")
        while True:
            waited += await self._until_fresh(task, caller.remaining())
            self._selection.begin(task, prepared.found, caller, "encode_learner", "queue")
            try:
                result = await submit()
            except StaleWeights:
                # They aged in the queue, or an older version was pinned. A task that waits goes back to waiting.
                if task.freshness.when_stale is not WhenStale.WAIT:
                    raise
            else:
                result.stages.wait = waited
                return result

    async def _until_fresh(self, task: Task, remaining: float | None) -> float:
        """Returns the seconds waited, 0 if the task need not wait."""
        if self._selection.awaited(task, 0.0) is None:
            return 0.0
        self._metrics.stale.labels("wait").inc()
        with tracing.stage("wait"):
            return await self._wait(task, remaining)

    async def _wait(self, task: Task, remaining: float | None) -> float:
        started = time.monotonic()
        seconds = LONGEST_SECONDS if remaining is None else reach(remaining)
        while (error := self._selection.awaited(task, time.monotonic() - started)) is not None:
            if self._admission.closed:
                raise Draining("server", "draining", "it waits for no weights any more; try another one")
            left = started + seconds - time.monotonic()
            if left <= 0:
                raise error
            await asyncio.sleep(min(TICK_SECONDS, left))
        return time.monotonic() - started
