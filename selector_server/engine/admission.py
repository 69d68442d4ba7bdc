"""Decides who may come in, by bounds on requests, on bytes under way and on memory. One more is refused at once."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from selector_server.errors import Draining, LimitExceeded, Overloaded
from selector_server.machine import MemoryBound
from selector_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

IDLE_TICK_SECONDS = 0.05
# What a request is taken to cost before one was served, and the bounds on what the refused are told to wait.
FIRST_SECONDS = 0.1
RETRY_SECONDS = (0.02, 30.0)
# The weight of each new measurement in the average.
WEIGHT = 0.2
# How long a reading of the memory is good: a burst of refusals must not read files each time.
FRESH_SECONDS = 0.02
WARN_SECONDS = 60.0


class MemoryGuard:
    """Keeps the process away from the limit at which the kernel kills it: it may use `share` of each of the
    `bounds`."""

    def __init__(self, bounds: Sequence[MemoryBound], share: float) -> None:
        self._bounds, self._share = bounds, share
        self._read, self._room, self._warned = float("-inf"), 0, float("-inf")
        self.most = min((int(bound.limit * share) for bound in bounds), default=1 << 62)

    def room(self, anew: bool = False) -> int:
        """Bytes that may yet be taken, read `anew` or a moment ago; negative when too much is in use already."""
        now = time.monotonic()
        if anew or now - self._read >= FRESH_SECONDS:
            self._read = now
            self._room = min((int(b.limit * self._share) - b.used() for b in self._bounds), default=1 << 62)
        return self._room

    def refused(self) -> None:
        """Says so in the log, once in a while."""
        if time.monotonic() - self._warned >= WARN_SECONDS:
            self._warned = time.monotonic()
            log.warning("short of memory, requests are refused: %s", self)

    def __str__(self) -> str:
        parts = [
            f"{bound.used() >> 20} MiB of {bound.limit >> 20} MiB used ({bound.name}), "
            f"refusing above {int(bound.limit * self._share) >> 20} MiB"
            for bound in self._bounds
        ]
        return "; ".join(parts) or "no limit found"


class Permit:
    """Bytes that a request may take. The system does not show them as used until they are `taken`."""

    def __init__(self, size: int) -> None:
        self.expected = size

    def taken(self) -> None:
        self.expected = 0


class Admission:
    """Gives permits for requests and their payload bytes. It is used from the event loop only, so it needs no lock.

    A refused request is told when to come again. That is honest only if not all are told the same: times lie as far
    apart as requests were finished lately, the last when all that is under way now would be done.
    """

    def __init__(self, max_requests: int, max_bytes: int, metrics: Metrics, guard: MemoryGuard | None = None) -> None:
        self.max_requests, self._max_bytes, self._metrics, self._guard = max_requests, max_bytes, metrics, guard
        self._requests = self._bytes = 0
        self._permits: set[Permit] = set()
        self._reliefs: list[Callable[[], int]] = []
        self._seconds = FIRST_SECONDS  # time from one finished request to the next, while there is work
        self._since = self._told = 0.0  # time.monotonic()
        self.closed = False

    def close(self) -> None:
        """From now on every request is refused: the server drains."""
        self.closed = True

    def relieve_by(self, relief: Callable[[], int]) -> None:
        """When memory is short, `relief` is called: it frees what is kept for later, and returns its bytes."""
        self._reliefs.append(relief)

    async def wait_idle(self, seconds: float) -> None:
        """Returns when no request holds a permit, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._requests and time.monotonic() < deadline:  # noqa: ASYNC110 - once in a life, at its end
            await asyncio.sleep(IDLE_TICK_SECONDS)

    @contextmanager
    def admit(self, payload_bytes: int) -> Iterator[Permit]:
        """Holds a permit for the block. Raises Draining, Overloaded or LimitExceeded before anything is allocated."""
        if self.closed:
            raise Draining("server", "draining", "send the request to another one, or again later")
        if self._requests >= self.max_requests:
            raise self.overloaded("pending requests", self._requests, f"at most {self.max_requests}", "pending")
        if not self._requests:
            self._since = time.monotonic()
        with self._hold(1, payload_bytes, "payload bytes of all requests") as permit:
            yield permit
            now = time.monotonic()
            self._seconds += WEIGHT * (now - self._since - self._seconds)
            self._since = now

    @contextmanager
    def enlarge(self, more_bytes: int) -> Iterator[Permit]:
        """Counts what a request takes beside what it was admitted with. Raises Overloaded and LimitExceeded."""
        with self._hold(0, more_bytes, "bytes of all requests, decoded") as permit:
            yield permit

    def overloaded(self, field: str, value: int, limit: str, rejection: str, at_once: bool = True) -> Overloaded:
        """The error that a request is refused with now, which tells it when to come again."""
        now, (least, most) = time.monotonic(), RETRY_SECONDS
        latest = self._seconds * max(1, self._requests)
        self._told = min(max(self._told, now) + self._seconds, now + latest)
        return Overloaded(field, value, limit, rejection, min(max(self._told - now, least), most), at_once)

    @contextmanager
    def _hold(self, requests: int, size: int, field: str) -> Iterator[Permit]:
        if size > self._max_bytes:
            raise LimitExceeded(field, size, f"at most {self._max_bytes}")
        if (total := self._bytes + size) > self._max_bytes:
            raise self.overloaded(field, total, f"at most {self._max_bytes}", "bytes", at_once=requests > 0)
        self._check_memory(field, size, at_once=requests > 0)
        permit = Permit(size)
        self._permits.add(permit)
        self._count(requests, size)
        try:
            yield permit
        finally:
            self._permits.discard(permit)
            self._count(-requests, -size)

    def _check_memory(self, field: str, size: int, at_once: bool) -> None:
        guard = self._guard
        if guard is None or not size:
            return
        if size > guard.most:
            raise LimitExceeded(field, size, f"this server may use {guard.most} bytes of memory")
        expected = sum(permit.expected for permit in self._permits)
        room = guard.room() - expected
        if size > room:
            freed = [relief() for relief in self._reliefs]
            room = guard.room(anew=any(freed)) - expected
        if size > room:
            guard.refused()
            limit = f"the server's memory has room for {max(0, room)} now"
            raise self.overloaded(field, size, limit, "memory", at_once)

    def _count(self, requests: int, payload_bytes: int) -> None:
        self._requests += requests
        self._bytes += payload_bytes
        self._metrics.pending.set(self._requests)
        self._metrics.inflight_bytes.set(self._bytes)
