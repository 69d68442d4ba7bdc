"""The end of the process, whatever hangs: a thread stuck in a device's driver cannot be ended by asking."""

import faulthandler
import logging
import os
import sys
from threading import Timer

log = logging.getLogger(__name__)


def end_within(seconds: float, status: int) -> None:
    """The process ends after that time at the latest, with this exit status unless it ended by itself before."""
    timer = Timer(seconds, _end, (status,))
    timer.daemon = True
    timer.start()


def show_threads() -> None:
    """Where every thread is, to standard error: what to look at when one is stuck."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)


def _end(status: int) -> None:
    log.warning("not everything ended in time: the process ends now")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
