"""Bounds what looking on may cost, as a share of what selecting takes."""

import time
from collections.abc import Callable
from threading import Lock


class Budget:
    """Seconds of processor time that may be spent. They are earned by the seconds that selections take, and a little by
    time that passes, so that rare or quick selections are looked at now and then; at most `most` of them are saved up.
    It is used from several threads."""

    def __init__(
        self,
        of_selections: float = 0.004,
        of_time: float = 0.001,
        most: float = 0.1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of_selections, self._of_time, self._most, self._now = of_selections, of_time, most, now
        self._left, self._last, self._lock = most, now(), Lock()

    def earn(self, seconds: float) -> None:
        """A selection took so long."""
        with self._lock:
            now = self._now()
            earned = self._of_selections * seconds + self._of_time * (now - self._last)
            self._left, self._last = min(self._left + earned, self._most), now

    def spend(self, seconds: float) -> None:
        """So much was spent, be it more than there was."""
        with self._lock:
            self._left -= seconds

    @property
    def left(self) -> bool:
        """Whether anything may be spent."""
        return self._left > 0
