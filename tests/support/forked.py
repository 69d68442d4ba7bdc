"""Processes that begin in a tenth of a second: forked from one that has imported already what they need.

A new Python takes two seconds of computing to import torch and the server, and the tests start hundreds of sidecars.
What a process does after its imports is the same; tests of how one starts and ends ask for a new Python.
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# One server of forks serves all tests of a worker, so that all say here what it imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "torch.distributed", "selector_client", "selector_tools.cli", "selector_server.app"]
)
_PR_SET_PDEATHSIG = 1


class ForkedCommand:
    """The `selector` command with these arguments, its output appended to a log; to be used like a subprocess.Popen.
    What PYTHONPATH adds is found; it cannot replace what the process that it is forked from has imported. The process
    calls `first` before all else."""

    def __init__(
        self, arguments: list[str], env: dict[str, str], log: Path, first: Callable[[], None] | None = None
    ) -> None:
        log.touch()
        # As a daemon, so that nobody waits for it at the end; it is killed then.
        settings = (arguments, env, os.getcwd(), str(log), first)
        self._process = PROCESSES.Process(target=_run, args=settings, daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self._lock = threading.Lock()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("selector", timeout)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], env: dict[str, str], folder: str, log: str, first: Callable[[], None] | None) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    if first is not None:
        first()
    from selector_tools.cli import main

    sys.argv = ["selector", *arguments]
    sys.exit(main(arguments))
