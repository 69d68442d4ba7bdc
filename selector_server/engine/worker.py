"""The one thread that owns the device. Tasks wait in a queue; late and abandoned ones are dropped unrun."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from selector_server.engine.caller import Caller
from selector_server.engine.preparation import Prepared
from selector_server.engine.task import Result, Stages
from selector_server.errors import SelectorError, TooLate, Unavailable
from selector_server.telemetry import tracing

log = logging.getLogger(__name__)


class Staged(Protocol):
    """What the worker needs of what it makes."""

    @property
    def stages(self) -> Stages: ...


T = TypeVar("T", bound=Staged)


@dataclass
class _Job:
    run: Callable[[Prepared, Caller], Staged]
    prepared: Prepared | None  # None: dropped
    caller: Caller
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    queued: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)

    def settle(self, result: Staged | BaseException) -> None:
        """Hands the outcome to the waiting request, from any thread."""

        def deliver() -> None:
            if self.future.done():
                return
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        self.loop.call_soon_threadsafe(deliver)


class Worker:
    """Runs `run(prepared, caller)` on one thread. `healthy` is what the health service shows: it comes from this
    thread. After an unforeseen failure `probe` is called; if that fails too, the device is lost and the thread ends."""

    def __init__(
        self,
        run: Callable[[Prepared, Caller], Result],
        stall_seconds: float,
        probe: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._stall_seconds, self._probe = run, stall_seconds, probe
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._busy_since: float | None = None
        self._stopped = self._ended = False
        self._thread = Thread(target=self._loop, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finishes what is queued, then ends the thread."""
        self._stopped = True
        self._jobs.put(None)
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    @property
    def healthy(self) -> bool:
        """Alive, and not stuck in one task."""
        return self.alive and self.busy_seconds < self._stall_seconds

    @property
    def busy_seconds(self) -> float:
        """How long it has been in the task that it runs; 0 without one."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def queued(self) -> int:
        """Tasks that wait for the thread."""
        return self._jobs.qsize()

    async def submit(self, prepared: Prepared, caller: Caller) -> Result:
        """The task's result. A cancelled wait drops the task, or ends it at its next step."""
        return await self.call(self._run, prepared, caller)

    async def call(self, run: Callable[[Prepared, Caller], T], prepared: Prepared, caller: Caller) -> T:
        """What `run` makes of the task on the worker's thread; see `submit`."""
        if self._stopped or not self.alive:
            raise Unavailable("worker", "stopped", "the server is going down")
        caller.enter("queue")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(run, prepared, caller, loop, future)
        self._jobs.put(job)
        if self._ended:  # since we looked
            self._refuse_queued()
        try:
            return await future
        except asyncio.CancelledError:
            caller.leave()
            job.prepared = None
            raise

    def _loop(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._busy_since = time.monotonic()
                try:
                    going_on = job.context.run(self._serve, job)
                except BaseException:
                    job.settle(Unavailable("worker", "dead", "the server is going down"))
                    raise
                self._busy_since = None
                del job  # or an idle worker would hold the last request's arrays
                if not going_on:
                    return
        finally:
            self._ended, self._busy_since = True, None
            self._refuse_queued()

    def _serve(self, job: _Job) -> bool:
        """Runs or drops it. False if the device is lost."""
        prepared, caller, queued = job.prepared, job.caller, time.monotonic() - job.queued
        left = caller.remaining()
        if prepared is None or caller.gone:
            log.info("dropped, its client is gone")
        elif left is not None and left <= 0:
            job.settle(TooLate("deadline", f"{queued:.3f} s in the queue", "it passed before the request was run"))
        else:
            tracing.past("queue", queued)
            try:
                result = job.run(prepared, caller)
                result.stages.queue = queued
                job.settle(result)
            except SelectorError as error:
                job.settle(error)
            except Exception as error:
                log.exception("unexpected failure")
                return self._still_works(job, error)
        return True

    def _still_works(self, job: _Job, error: Exception) -> bool:
        try:
            self._probe()
        except Exception:
            log.critical("the device is lost, the server goes down", exc_info=True)
            job.settle(Unavailable("device", "lost", "the server is going down"))
            return False
        job.settle(error)
        return True

    def _refuse_queued(self) -> None:
        try:
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.settle(Unavailable("worker", "stopped", "the server is going down"))
        except Empty:
            return
