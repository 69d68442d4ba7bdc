"""Stops asking a sidecar that does not answer, and finds out beside the trainer when it does again."""

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

# Failures in a row after which nothing is asked any more.
THRESHOLD = 3
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 5.0


class Breaker:
    """`probe()` says whether the sidecar would answer; a thread of its own calls it, with growing pauses, while the
    breaker is open. A forked child begins closed: it has no such thread."""

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._failures = 0
        self._closing = threading.Event()
        self.open = False
        self.opened = 0  # how often

    def allows(self) -> bool:
        """Whether a request may be sent."""
        if self._pid != os.getpid():
            self._lock, self._pid, self._failures, self.open = threading.Lock(), os.getpid(), 0, False
            self._closing = threading.Event()
        return not self.open

    def succeeded(self) -> None:
        """An answer came, whatever it says."""
        with self._lock:
            self._failures, self.open = 0, False

    def failed(self) -> None:
        """No answer came."""
        with self._lock:
            self._failures += 1
            if self.open or self._failures < THRESHOLD or self._closing.is_set():
                return
            self.open, self.opened = True, self.opened + 1
        log.warning("no answer %d times in a row: nothing is asked until the sidecar is healthy again", THRESHOLD)
        threading.Thread(target=self._watch, name="selector-probe", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._closing.set()

    def _watch(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._closing.wait(pause):
            if not self.open or self._probe():
                break
            pause = min(2 * pause, LAST_PAUSE_SECONDS)
        if self.open and not self._closing.is_set():
            log.warning("the sidecar is healthy again")
        self.succeeded()
