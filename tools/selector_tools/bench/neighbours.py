"""Busy neighbours: processes that take what they get of the machine's cores, as a trainer's data workers do."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from selector_tools.bench.harness import Mistake

# It ends when whoever started it has ended, by whatever signal.
_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
_MOST = 256


def add_busy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--busy",
        type=int,
        default=0,
        metavar="N",
        help="also measure beside so many busy processes, each in a session of its own (default %(default)s)",
    )


def busy_mistake(busy: int) -> Mistake:
    return (not 0 <= busy <= _MOST, "--busy", busy, f"must be 0 to {_MOST}")


class Neighbours:
    """So many busy processes, which stand still but during `beside`. Each has a session of its own, for a kernel that
    groups processes by session gives each group the same share."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", _BUSY, str(os.getpid())]
        for _ in range(self._count):
            self._processes.append(subprocess.Popen(command, start_new_session=True))
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def beside(self, seconds: Callable[[], float]) -> float:
        """Returns what `seconds` returns, which measures itself while the neighbours are busy."""
        self._signal(signal.SIGCONT)
        try:
            return seconds()
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            os.kill(process.pid, number)
