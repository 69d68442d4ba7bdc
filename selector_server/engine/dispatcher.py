"""Hands tasks to the device's worker. A task that accepts newer weights only waits for them here, on the event loop,
beside the worker and its queue."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from selector_server.engine.admission import Admission
from selector_server.engine.candidates.base import Scorable
from selector_server.engine.models import Models
from selector_server.engine.request import Request
from selector_server.engine.scorer import Scorer
from selector_server.engine.task import Result, ServedWeights, Task
from selector_server.engine.worker import Worker
from selector_server.errors import Draining, StaleWeights
from selector_server.sampling import Scores
from selector_server.telemetry import tracing
from selector_server.telemetry.metrics import Metrics
from selector_server.weights.freshness import WhenStale

# How often the served version is looked at: a look is a few comparisons.
TICK_SECONDS = 0.02
# Left of the deadline when a wait is given up, at most a quarter of it: time for the refusal to say why.
REACH_SECONDS = 0.25
# The longest wait of a request without a deadline.
LONGEST_SECONDS = 600.0

T = TypeVar("T")


def reach(remaining: float | None) -> float:
    """Seconds that a request may wait with so many left of its deadline; endless without one."""
    return float("inf") if remaining is None else remaining - min(REACH_SECONDS, remaining / 4)


class Dispatcher:
    """Between preparation and worker. A drain ends every wait."""

    def __init__(self, models: Models, scorer: Scorer, worker: Worker, admission: Admission, metrics: Metrics) -> None:
        self._models, self._scorer, self._worker = models, scorer, worker
        self._admission, self._metrics = admission, metrics

    async def select(self, task: Task[Scorable], request: Request) -> Result:
        """The task's result, once the weights are as new as it accepts. Raises StaleWeights when the deadline comes
        within reach, TooLate when it cannot be kept, Draining when the server drains."""
        return await self._fresh(task, request, lambda: self._scorer.select(task, request))

    async def score(self, task: Task[Scorable], request: Request) -> tuple[Scores, ServedWeights | None]:
        """As `select`, but for a draw that is made elsewhere."""
        return await self._fresh(task, request, lambda: self._scorer.score(task, request))

    async def _fresh(self, task: Task[Scorable], request: Request, work: Callable[[], T]) -> T:
        waited = 0.0
        request.enter("queue")
        request.least = self._scorer.least_seconds(task, found=True)
        while True:
            waited += await self._until_fresh(task, request)
            request.begin("encode_learner", "queue")
            try:
                outcome = await self._worker.run(work, request)
            except StaleWeights:
                # They aged in the queue, or an older version was pinned. A task that waits goes back to waiting.
                if task.freshness.when_stale is not WhenStale.WAIT:
                    raise
            else:
                request.spent("wait", waited)
                return outcome

    async def _until_fresh(self, task: Task[Any], request: Request) -> float:
        """Returns the seconds waited, 0 if the task need not wait."""
        if self._models.awaited(task, 0.0) is None:
            return 0.0
        self._metrics.stale.labels("wait").inc()
        with tracing.stage("wait"):
            return await self._wait(task, request.remaining())

    async def _wait(self, task: Task[Any], remaining: float | None) -> float:
        started = time.monotonic()
        seconds = LONGEST_SECONDS if remaining is None else reach(remaining)
        while (error := self._models.awaited(task, time.monotonic() - started)) is not None:
            if self._admission.closed:
                raise Draining("server", "draining", "it waits for no weights any more; try another one")
            left = started + seconds - time.monotonic()
            if left <= 0:
                raise error
            await asyncio.sleep(min(TICK_SECONDS, left))
        return time.monotonic() - started
