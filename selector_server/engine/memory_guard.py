"""Keeps the process away from the limit at which the kernel kills it."""

import logging
import time
from collections.abc import Sequence

from selector_server.machine import MemoryBound

log = logging.getLogger(__name__)

# A reading is good for that long: a burst of refusals must not read files each time.
FRESH_SECONDS = 0.02
WARN_SECONDS = 60.0


class MemoryGuard:
    """Of each of the `bounds`, `share` may be used."""

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
