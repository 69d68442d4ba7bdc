"""The one thread that owns the device. Tasks wait in a queue; late and abandoned ones are dropped unrun."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from selector_server.engine.preparation import Prepared
from selector_server.engine.task import Result, Stages
from selector_server.errors import SelectorError, TooLate, Unavailable

log = logging.getLogger(__name__)


class Staged(Protocol):
    """What the worker needs of what it makes."""

    @property
    def stages(self) -> Stages: ...


T = TypeVar("T", bound=Staged)


@dataclass
class _Job:
    run: Callable[[Prepared], Staged]
    prepared: Prepared
    deadline: float  # time.monotonic()
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    queued: float

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
    """Runs `run(prepared)` on one thread. `healthy` is what the health service shows: it comes from this thread."""

    def __init__(self, run: Callable[[Prepared], Result], stall_seconds: float) -> None:
        self._run, self._stall_seconds = run, stall_seconds
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._busy_since: float | None = None
        self._stopped = False
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
        return self._thread.is_alive()

    @property
    def healthy(self) -> bool:
        """Alive, and not stuck in one task."""
        since = self._busy_since
        return self.alive and (since is None or time.monotonic() - since < self._stall_seconds)

    @property
    def queued(self) -> int:
        """Tasks that wait for the thread."""
        return self._jobs.qsize()

    async def submit(self, prepared: Prepared, timeout: float | None) -> Result:
        """The task's result. `timeout` in seconds from now; a cancelled wait drops the task if it has not begun."""
        return await self.call(self._run, prepared, timeout)

    async def call(self, run: Callable[[Prepared], T], prepared: Prepared, timeout: float | None) -> T:
        """What `run` makes of the task on the worker's thread; see `submit`."""
        if self._stopped or not self.alive:
            raise Unavailable("worker", "stopped", "the server is going down")
        now = time.monotonic()
        deadline = now + timeout if timeout is not None else float("inf")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(run, prepared, deadline, loop, future, now))
        return await future

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._busy_since = now = time.monotonic()
            if job.future.cancelled():
                log.info("request %s: dropped, its client is gone", job.prepared.task.request_id)
            elif now >= job.deadline:
                waited = f"{now - job.queued:.3f} s in the queue"
                job.settle(TooLate("deadline", waited, "it passed before the request was run"))
            else:
                job.settle(self._attempt(job, now - job.queued))
            self._busy_since = None
            del job  # or an idle worker would hold the last request's arrays

    def _attempt(self, job: _Job, waited: float) -> Staged | BaseException:
        try:
            result = job.run(job.prepared)
            result.stages.queue = waited
            return result
        except SelectorError as error:
            return error
        except Exception as error:
            log.exception("request %s: unexpected failure", job.prepared.task.request_id)
            return error
