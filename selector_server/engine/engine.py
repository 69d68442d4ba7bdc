"""The engine's front door: one selection, or one shortlist, from its admission to its result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selector_server.engine.admission import Admission
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.models import Models
from selector_server.engine.ranks import Ranks
from selector_server.engine.request import Request, in_thread
from selector_server.engine.scorer import Scorer
from selector_server.engine.task import Result, Task
from selector_server.errors import StaleWeights
from selector_server.telemetry.metrics import Metrics


class Engine:
    """Admits, prepares, and hands on to `ranks`, which leads to the device's worker, alone or with other ranks."""

    def __init__(
        self,
        admission: Admission,
        models: Models,
        preparation: Preparation,
        scorer: Scorer,
        ranks: Ranks,
        metrics: Metrics,
    ) -> None:
        self._admission, self._models, self._preparation = admission, models, preparation
        self._scorer, self._ranks, self._metrics = scorer, ranks, metrics

    async def select(self, request: Request) -> Result:
        """Picks. The request's content is received once it was admitted. Raises SelectorError."""
        with self._ranks.entered(request) as run, self._counted():
            request.hold(self._admission.admit(request.payload_bytes))
            result = await run(await self._prepared(request), request)
        request.result = result
        return result

    async def shortlist(self, request: Request) -> Task[Any]:
        """The request's task, whose candidates that do not go on are closed. What is received, and what is refused, is
        as in `select`; the device and its queue have no part in it. Raises SelectorError."""
        with self._counted():
            request.hold(self._admission.admit(request.payload_bytes))
            return await self._prepared(request)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts a request that is refused because the weights are old."""
        try:
            yield
        except StaleWeights:
            self._metrics.stale.labels("refuse").inc()
            raise

    async def _prepared(self, request: Request) -> Task[Any]:
        """The request's task once its candidates are prepared. What was received is let go."""
        task = await request.received()
        self._models.check(task)
        request.least = self._scorer.least_seconds(task, found=False)
        request.begin("preprocess", "preprocess")
        candidates, preparation = task.candidates, self._preparation
        request.hold(self._admission.enlarge(candidates.extra_bytes(preparation)))
        ready = await in_thread(lambda: candidates.prepare(task, preparation, request), request)
        request.allocated()
        ready.closed.check(task.size, task.plan.picks, task.max_excluded_share)
        prepared = request.task = task.of(ready)
        return prepared
