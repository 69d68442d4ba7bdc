"""Who may come in: a bound on requests and on bytes under way. One more is refused at once, never queued."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from selector_server.errors import Overloaded, Unavailable
from selector_server.telemetry.metrics import Metrics

IDLE_TICK_SECONDS = 0.05


class Admission:
    """Permits for requests and their payload bytes. Used from the event loop only, so it needs no lock."""

    def __init__(self, max_requests: int, max_bytes: int, metrics: Metrics) -> None:
        self._max_requests, self._max_bytes, self._metrics = max_requests, max_bytes, metrics
        self._requests = self._bytes = 0
        self.closed = False

    def close(self) -> None:
        """From now on every request is refused: the server drains."""
        self.closed = True

    async def wait_idle(self, seconds: float) -> None:
        """Returns when no request holds a permit, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._requests and time.monotonic() < deadline:  # noqa: ASYNC110 - once in a life, at its end
            await asyncio.sleep(IDLE_TICK_SECONDS)

    @contextmanager
    def admit(self, payload_bytes: int) -> Iterator[None]:
        """Holds a permit. Raises Overloaded or Unavailable before anything is allocated."""
        if self.closed:
            raise Unavailable("server", "draining", "send the request to another one, or again later")
        if self._requests >= self._max_requests:
            raise Overloaded("pending requests", self._requests, f"at most {self._max_requests}")
        if self._bytes + payload_bytes > self._max_bytes:
            total = self._bytes + payload_bytes
            raise Overloaded("payload bytes of all requests", total, f"at most {self._max_bytes}")
        self._count(1, payload_bytes)
        try:
            yield
        finally:
            self._count(-1, -payload_bytes)

    @contextmanager
    def enlarge(self, more_bytes: int) -> Iterator[None]:
        """Counts what an admitted request takes beside its payload. Raises Overloaded."""
        if (total := self._bytes + more_bytes) > self._max_bytes:
            raise Overloaded("bytes of all requests, decoded", total, f"at most {self._max_bytes}")
        self._count(0, more_bytes)
        try:
            yield
        finally:
            self._count(0, -more_bytes)

    def _count(self, requests: int, payload_bytes: int) -> None:
        self._requests += requests
        self._bytes += payload_bytes
        self._metrics.pending.set(self._requests)
        self._metrics.inflight_bytes.set(self._bytes)
