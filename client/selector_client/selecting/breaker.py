"""Stops asking a sidecar that does not answer, and finds out beside the trainer when it does again."""

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

# After so many failures in a row nothing is asked any more.
THRESHOLD = 3
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 5.0


class Breaker:
    """Is open while the sidecar is not to be asked. `probe()` says whether the sidecar would answer; while the breaker
    is open, a thread of its own calls it with growing pauses. In a forked child, which has no such thread, it begins
    closed."""

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._failures = 0
        self._told = False  # whether the log has a probe's exception
        self._closing = threading.Event()
        self.open = False
        self.opened = 0  # how often it opened

    def allows(self) -> bool:
        """Whether a request may be sent now."""
        if self._pid != os.getpid():
            self._lock, self._pid, self._failures, self.open = threading.Lock(), os.getpid(), 0, False
            self._closing = threading.Event()
        if self._closing.is_set():  # a selector that was closed is used again
            with self._lock:
                self._closing, self._failures, self.open = threading.Event(), 0, False
        return not self.open

    def succeeded(self) -> None:
        """Notes that an answer came, whatever it says."""
        with self._lock:
            self._failures, self.open = 0, False

    def failed(self) -> None:
        """Notes that no answer came."""
        with self._lock:
            self._failures += 1
            if self.open or self._failures < THRESHOLD or self._closing.is_set():
                return
            self.open, self.opened = True, self.opened + 1
        log.warning("no answer %d times in a row: nothing is asked until the sidecar is healthy again", THRESHOLD)
        threading.Thread(target=self._watch, args=(self._closing,), name="selector-probe", daemon=True).start()

    def close(self) -> None:
        """Ends the probing. A request that is made later begins with a closed breaker."""
        self._closing.set()

    def _watch(self, closing: threading.Event) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not closing.wait(pause):
            if not self.open or self._healthy():
                break
            pause = min(2 * pause, LAST_PAUSE_SECONDS)
        if closing.is_set():
            return
        if self.open:
            log.warning("the sidecar is healthy again")
        self.succeeded()

    def _healthy(self) -> bool:
        """Whether the probe says so. One that raises does not, and the next may."""
        try:
            return self._probe()
        except Exception:
            if not self._told:
                self._told = True
                log.warning("the sidecar could not be asked whether it is healthy", exc_info=True)
            return False
