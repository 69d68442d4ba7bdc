"""What is told of each selection: an id in the log, a trace, and counts of those that were rejected or left."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.caller import Caller
from selector_server.engine.task import Result, Task
from selector_server.rpc.status import SERVICE, Context, code_of
from selector_server.telemetry.logs import request_id
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.tracing import Trace, Tracing

log = logging.getLogger(__name__)

MAX_REQUEST_ID = 128


class Account:
    """Of one selection."""

    def __init__(self, caller: Caller, trace: Trace | None) -> None:
        self.caller, self._trace = caller, trace
        self.summary = ""

    def header(self, selection: pb.Selection) -> None:
        """The first message came."""
        name = selection.request_id
        # A name that the contract does not allow must not get into the log; it is refused later.
        named = bool(name) and len(name) <= MAX_REQUEST_ID and name.isprintable()
        request_id.set(name if named else secrets.token_hex(8))
        if self._trace is not None:
            self._trace.annotate(
                {"selector.request_id": request_id.get(), "selector.payload_bytes": selection.payload_bytes}
            )

    def result(self, task: Task, result: Result) -> None:
        self.summary = f", {len(result.indices)} of {task.size} picked by {result.policy}"
        if self._trace is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            "selector.candidates": task.size,
            "selector.picks": len(result.indices),
            "selector.policy": result.policy,
        }
        if result.weights is not None:
            attributes["selector.weights_version"] = result.weights.version
        self._trace.annotate(attributes)


class Accounts:
    """With `access_log`, each selection is one line of it."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None, access_log: bool) -> None:
        self._metrics, self._tracing = metrics, tracing
        self._level = logging.INFO if access_log else logging.DEBUG

    @contextmanager
    def of(self, context: Context) -> Iterator[Account]:
        """For the time of the call. Errors pass through."""
        started, code, message = time.perf_counter(), "OK", ""
        with ExitStack() as stack:
            trace = None
            if self._tracing is not None:
                metadata = tuple(context.invocation_metadata() or ())
                trace = stack.enter_context(self._tracing.request(f"{SERVICE}/Select", metadata))
            account = Account(Caller(context.time_remaining()), trace)
            try:
                yield account
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED.name
                self._metrics.cancelled.labels(account.caller.stage).inc()
                raise
            except Exception as error:
                code, message = code_of(error), str(error)
                if reason := getattr(error, "rejection", ""):
                    self._metrics.rejected.labels(reason).inc()
                raise
            finally:
                if trace is not None:
                    trace.end(code, message if code != "INTERNAL" else "")
                seconds = time.perf_counter() - started
                where = f" at {account.caller.stage}" if code != "OK" else ""
                log.log(self._level, "Select %s%s in %.3f s%s", code, where, seconds, account.summary)
