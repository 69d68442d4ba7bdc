"""Which core a process's threads run on; Linux only."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cores() -> tuple[int, int] | None:
    """Two cores of this process's, None if it has fewer or the system cannot tell."""
    if not hasattr(os, "sched_getaffinity") or len(usable := sorted(os.sched_getaffinity(0))) < 2:
        return None
    return usable[0], usable[1]


@contextmanager
def apart() -> Iterator[tuple[int, int] | None]:
    """Two cores, this process bound to the second one meanwhile; None, and nothing bound, where there are no two."""
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
    """Binds all threads of a process, or `only` some, to these cores; threads that they start inherit it."""
    allowed = set(allowed)
    for thread in threads(pid) if only is None else only:
        try:
            os.sched_setaffinity(thread, allowed)
        except ProcessLookupError:  # it ended meanwhile
            continue


def busy_threads(pid: int, seconds: float) -> list[int]:
    """Threads that work while the process otherwise idles: all but the main one that use at least a tenth of the
    processor time of the busiest of them within `seconds`."""
    before = _processor_seconds(pid)
    time.sleep(seconds)
    used = {tid: now - before.get(tid, 0.0) for tid, now in _processor_seconds(pid).items() if tid != pid}
    most = max(used.values(), default=0.0)
    return [tid for tid, spent in used.items() if spent > 0 and spent >= most / 10]


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def _processor_seconds(pid: int) -> dict[int, float]:
    found = {}
    for tid in threads(pid):
        try:
            found[tid] = int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:
            continue
    return found
