"""The one thread that owns the device. Work waits for it in a queue; late and abandoned work is dropped unrun."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from selector_server.engine.request import Request
from selector_server.errors import SelectorError, TooLate, Unavailable
from selector_server.telemetry import tracing

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Job:
    work: Callable[[], Any] | None  # None: it was dropped
    request: Request
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    queued: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)

    def settle(self, outcome: Any, failed: bool = False) -> None:
        """Hands the outcome to the waiting request, from any thread."""

        def deliver() -> None:
            if self.future.done():
                return
            if failed:
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

        self.loop.call_soon_threadsafe(deliver)


class Worker:
    """Runs work on one thread. `healthy` is what the health service shows: it comes from this thread. After an
    unforeseen failure `probe` is called; if that fails too, the device is lost and the thread ends."""

    def __init__(self, stall_seconds: float, probe: Callable[[], None] = lambda: None) -> None:
        self._stall_seconds, self._probe = stall_seconds, probe
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
        """Whether it is alive, and not stuck in one piece of work."""
        return self.alive and self.busy_seconds < self._stall_seconds

    @property
    def busy_seconds(self) -> float:
        """How long it has been in the work that it runs; 0 without any."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def queued(self) -> int:
        """How many pieces of work wait for the thread."""
        return self._jobs.qsize()

    async def run(self, work: Callable[[], T], request: Request) -> T:
        """What `work` returns on the worker's thread. A cancelled wait drops the work, or tells the request that its
        client left, which ends the work at its next step. Raises Unavailable, TooLate and what `work` raises."""
        if self._stopped or not self.alive:
            raise Unavailable("worker", "stopped", "the server is going down")
        request.enter("queue")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(work, request, loop, future)
        self._jobs.put(job)
        if self._ended:  # since we looked
            self._refuse_queued()
        try:
            return await future
        except asyncio.CancelledError:
            request.leave()
            job.work = None
            raise

    def _loop(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._busy_since = time.monotonic()
                try:
                    going_on = job.context.run(self._serve, job)
                except BaseException:
                    job.settle(Unavailable("worker", "dead", "the server is going down"), failed=True)
                    raise
                self._busy_since = None
                del job  # or an idle worker would hold the last request's arrays
                if not going_on:
                    return
        finally:
            self._ended, self._busy_since = True, None
            self._refuse_queued()

    def _serve(self, job: _Job) -> bool:
        """Runs or drops the work. Returns False if the device is lost."""
        work, request, queued = job.work, job.request, time.monotonic() - job.queued
        left = request.remaining()
        if work is None or request.gone:
            log.info("dropped, its client is gone")
        elif left is not None and left <= 0:
            limit = "it passed before the request was run"
            job.settle(TooLate("deadline", f"{queued:.3f} s in the queue", limit), failed=True)
        else:
            tracing.past("queue", queued)
            try:
                outcome = work()
                request.spent("queue", queued)
                job.settle(outcome)
            except SelectorError as error:
                job.settle(error, failed=True)
            except Exception as error:
                log.exception("unexpected failure")
                return self._still_works(job, error)
        return True

    def _still_works(self, job: _Job, error: Exception) -> bool:
        try:
            self._probe()
        except Exception:
            log.critical("the device is lost, the server goes down", exc_info=True)
            job.settle(Unavailable("device", "lost", "the server is going down"), failed=True)
            return False
        job.settle(error, failed=True)
        return True

    def _refuse_queued(self) -> None:
        try:
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.settle(Unavailable("worker", "stopped", "the server is going down"), failed=True)
        except Empty:
            return
