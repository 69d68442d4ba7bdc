"""Bounds what looking on may cost, as a share of what this process computes."""

import time
from collections.abc import Callable
from threading import Lock


class Budget:
    """Seconds of processor time that may be spent. They are earned by the processor time that the process takes, and a
    little by time that passes, so that rare or quick selections are looked at now and then; at most `most` of them are
    saved up. It is used from several threads."""

    def __init__(
        self,
        of_processor: float = 0.001,
        of_time: float = 0.0005,
        most: float = 0.1,
        processor: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of_processor, self._of_time, self._most = of_processor, of_time, most
        self._processor, self._now, self._lock = processor, now, Lock()
        self._left, self._last_processor, self._last = most, processor(), now()

    def earn(self) -> None:
        """To be called once a selection."""
        with self._lock:
            processor, now = self._processor(), self._now()
            earned = self._of_processor * (processor - self._last_processor) + self._of_time * (now - self._last)
            self._left, self._last_processor, self._last = min(self._left + earned, self._most), processor, now

    def spend(self, seconds: float) -> None:
        """So much was spent, be it more than there was."""
        with self._lock:
            self._left -= seconds

    @property
    def left(self) -> bool:
        """Whether anything may be spent."""
        return self._left > 0
