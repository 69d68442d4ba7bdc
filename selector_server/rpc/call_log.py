"""What is told of each selection and shortlist: an id in the log, a trace, and the counts of what came of it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.closed import Closed
from selector_server.engine.request import Request
from selector_server.engine.task import Result, Task
from selector_server.errors import Exclusion
from selector_server.rpc.status import SERVICE, Context, code_of
from selector_server.rpc.wire import MAX_REQUEST_ID
from selector_server.telemetry import tracing
from selector_server.telemetry.logs import request_id
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# The log names an excluded candidate of each reason once in so many seconds.
EXCLUDED_SECONDS = 60.0


class CallLog:
    """With `access_log`, each call is one line of the log."""

    def __init__(self, metrics: Metrics, traces: Tracing | None, access_log: bool) -> None:
        self._metrics, self._tracing = metrics, traces
        self._level = logging.INFO if access_log else logging.DEBUG
        self._said: dict[Exclusion, float] = {}

    @contextmanager
    def request(self, context: Context, method: str) -> Iterator[Request]:
        """Gives the request of this call of a method, for the time of the call. Errors pass through."""
        code, message = "OK", ""
        with ExitStack() as stack:
            trace = None
            if self._tracing is not None:
                metadata = tuple(context.invocation_metadata() or ())
                trace = stack.enter_context(self._tracing.request(f"{SERVICE}/{method}", metadata))
            request = Request(context.time_remaining())
            try:
                with request:
                    yield request
                if request.task is not None and request.result is not None:
                    self._count(request, request.task, request.result)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED.name
                self._metrics.cancelled.labels(request.stage).inc()
                raise
            except Exception as error:
                code, message = code_of(error), str(error)
                if reason := getattr(error, "rejection", ""):
                    self._metrics.rejected.labels(reason).inc()
                raise
            finally:
                if trace is not None:
                    trace.end(code, message if code != "INTERNAL" else "")
                seconds = time.perf_counter() - request.started
                where, summary = (f" at {request.stage}", "") if code != "OK" else ("", _summary(request))
                log.log(self._level, "%s %s%s in %.3f s%s", method, code, where, seconds, summary)

    def named(self, request: Request, selection: pb.Selection) -> None:
        """The header came: log lines and the trace carry the request's id from now on."""
        name = request.id = selection.request_id
        # A name that the contract does not allow must not get into the log; it is refused later.
        fit = bool(name) and len(name) <= MAX_REQUEST_ID and name.isprintable()
        request_id.set(name if fit else secrets.token_hex(8))
        tracing.annotate({"selector.request_id": request_id.get(), "selector.payload_bytes": selection.payload_bytes})

    def received(self, request: Request, selection: pb.Selection) -> None:
        """The whole payload came."""
        request.allocated()
        seconds = time.perf_counter() - request.started
        request.spent("receive", seconds)
        tracing.past("receive", seconds)
        self._metrics.shm_payloads.inc(selection.HasField("shared_memory"))

    def shortlisted(self, task: Task[Any]) -> None:
        """Counts the candidates that do not go on; those that do are counted when they are selected from."""
        closed: Closed = task.candidates.closed
        self._metrics.candidates.inc(len(closed))
        self._metrics.cached.inc(closed.left_out)
        self._metrics.not_examined.inc(closed.left_out)
        self._count_excluded(closed)
        tracing.annotate({"selector.candidates": task.size, "selector.left_out": closed.left_out})

    def _count(self, request: Request, task: Task[Any], result: Result) -> None:
        metrics = self._metrics
        for stage, seconds in vars(request.stages).items():
            metrics.stage_seconds.labels(stage).observe(seconds)
        metrics.candidates.inc(task.size)
        metrics.picks.inc(len(result.indices))
        metrics.super_batch.observe(task.size)
        metrics.cached.inc(result.cached)
        metrics.uncached.inc(result.uncached)
        metrics.not_examined.inc(result.not_examined)
        self._count_excluded(result.closed)
        if result.weights is not None and result.weights.lag_steps is not None:
            metrics.weights.lag.set(result.weights.lag_steps)
        if result.weights is not None and result.weights.stale:
            metrics.stale.labels("serve").inc()
        if result.objective is not None and result.objective_uniform is not None:
            metrics.objective.labels("picks").set(result.objective)
            metrics.objective.labels("uniform").set(result.objective_uniform)
        if (quality := result.quality) is not None:
            picked, left = ((part.counts, part.total) for part in (quality.picked, quality.left))
            criterion = task.rule.criterion.name.lower()
            metrics.quality.observe(criterion, picked, left, quality.top_share, quality.uniform_overlap)
        if (alike := result.locality) is not None:
            metrics.quality.observe_locality(alike.adjacent, alike.random, alike.near_duplicates)
        attributes: dict[str, str | int | float | bool] = {
            "selector.candidates": task.size,
            "selector.picks": len(result.indices),
            "selector.policy": result.policy,
        }
        if result.closed.reasons:
            attributes["selector.excluded"] = len(result.closed.reasons)
        if result.closed.left_out:
            attributes["selector.left_out"] = result.closed.left_out
        if result.weights is not None:
            attributes["selector.weights_version"] = result.weights.version
        tracing.annotate(attributes)

    def _count_excluded(self, closed: Closed) -> None:
        now = time.monotonic()
        for reason, count in closed.counts.items():
            self._metrics.excluded.labels(reason.value).inc(count)
            if now - self._said.get(reason, float("-inf")) >= EXCLUDED_SECONDS:
                self._said[reason] = now
                log.warning(
                    "excluded as %s: %d candidates, the first is %d: %s", reason.value, count, *closed.first[reason]
                )


def _summary(request: Request) -> str:
    task, result = request.task, request.result
    if task is None:
        return ""
    if result is None:
        return f", {task.size - len(task.candidates.closed)} of {task.size} go on"
    closed = result.closed
    excluded = f", {len(closed.reasons)} excluded" if closed.reasons else ""
    left_out = f", {closed.left_out} left out by the prefilter" if closed.left_out else ""
    return f", {len(result.indices)} of {task.size} picked by {result.policy}{excluded}{left_out}"
