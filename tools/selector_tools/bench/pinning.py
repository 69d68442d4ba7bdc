"""Binds threads of processes to cores, so that trainer and sidecar do not take each other's time; Linux only."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cores() -> tuple[int, int] | None:
    """Returns two cores that this process may use, or None if it has fewer or the system cannot tell."""
    if not hasattr(os, "sched_getaffinity") or len(usable := sorted(os.sched_getaffinity(0))) < 2:
        return None
    return usable[0], usable[1]


@contextmanager
def apart() -> Iterator[tuple[int, int] | None]:
    """Yields two cores and binds this process to the second one meanwhile. Where there are no two, it yields None and
    binds nothing."""
    if (found := cores()) is None:
        yield None
        return
    usable = sorted(os.sched_getaffinity(0))
    pin(os.getpid(), {found[1]})
    try:
        yield found
    finally:
        pin(os.getpid(), usable)


def threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def pin(pid: int, allowed: Iterable[int], only: Iterable[int] | None = None) -> None:
    """Binds all threads of a process, or `only` some, to these cores. Threads that they start later inherit that."""
    allowed = set(allowed)
    for thread in threads(pid) if only is None else only:
        try:
            os.sched_setaffinity(thread, allowed)
        except ProcessLookupError:  # it ended meanwhile
            continue


def busy_threads(pid: int, seconds: float) -> list[int]:
    """Returns the threads that work while the process otherwise idles: those that within `seconds` use at least a tenth
    of the processor time that the busiest of them uses. The main thread is never among them."""
    before = _processor_seconds(pid)
    time.sleep(seconds)
    used = {tid: now - before.get(tid, 0.0) for tid, now in _processor_seconds(pid).items() if tid != pid}
    most = max(used.values(), default=0.0)
    return [tid for tid, spent in used.items() if spent > 0 and spent >= most / 10]


def _processor_seconds(pid: int) -> dict[int, float]:
    found = {}
    for tid in threads(pid):
        try:
            found[tid] = int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:
            continue
    return found
