"""Ends the process, whatever hangs: a thread stuck in a device's driver cannot be ended by asking."""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from threading import Timer

log = logging.getLogger(__name__)

# The parts get this time to end when they are not waited for.
FORCED_SECONDS = 3.0


class Signals:
    """The running event loop hears SIGTERM and SIGINT from now on. The first sets `stop`. The second sets `force`,
    whatever goes on by then, and the process ends soon, with status 0."""

    def __init__(self) -> None:
        self.stop, self.force = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._heard)

    def _heard(self) -> None:
        if not self.stop.is_set():
            self.stop.set()
        elif not self.force.is_set():
            log.warning("second signal: running requests are cut off")
            end_within(FORCED_SECONDS, 0)
            self.force.set()


def end_within(seconds: float, status: int) -> None:
    """The process ends after that time at the latest, with this exit status unless it ended by itself before."""
    timer = Timer(seconds, _end, (status,))
    timer.daemon = True
    timer.start()


def show_threads() -> None:
    """Writes to standard error where every thread is: what to look at when one is stuck."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)


def _end(status: int) -> None:
    log.warning("not everything ended in time: the process ends now")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
