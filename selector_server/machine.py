"""What this process may use of the machine it runs on."""

import ctypes
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# Settings of glibc's mallopt: their numbers, the largest block that is kept when freed, and how much is kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
KEPT_BLOCK_BYTES, KEPT_BYTES = 32 << 20, 128 << 20


def keep_freed_memory() -> None:
    """Lets the allocator keep what requests free for the next ones. By default it gives megabytes back to the system
    each time, and their first touch costs more than what is computed in them. It also keeps threads apart: what one
    of them freed no other one takes, so that by chance a process is slower than another, and grows. Only glibc knows
    how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """The CPUs that affinity and the cgroup's quota allow (v2, then v1), rounded up, and at least 1. A pod limited to
    two CPUs still sees all of its node's, and a thread for each would fight over two."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def resident(proc: Path = PROC) -> dict[str, int]:
    """Bytes of this process that are in memory: anonymous (its own), of files (libraries, the cache), shared. Empty
    where the system does not say."""
    kinds = {"RssAnon:": "anonymous", "RssFile:": "file", "RssShmem:": "shared"}
    words = _read(proc / "self" / "status")
    return {kinds[word]: int(words[at + 1]) * 1024 for at, word in enumerate(words) if word in kinds}


@dataclass(frozen=True)
class MemoryBound:
    """Memory that processes may use together. `used` counts the bytes that cannot be taken back from files."""

    name: str
    limit: int
    used: Callable[[], int]


def memory_bounds(cgroup: Path = CGROUP, proc: Path = PROC) -> list[MemoryBound]:
    """The bounds of this process's cgroup and of the ones around it (v2, then v1), and the machine's."""
    bounds = []
    machine = _machine(proc)
    most = 1 << 60 if machine is None else machine.limit
    for folder in _memory_cgroups(cgroup, proc):
        for limit, current, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            size = _number(folder / limit)
            if size is not None and size < most:  # It says "max", or the huge number that v1 has for it.
                bounds.append(MemoryBound(f"cgroup {folder}", size, _used(folder, current, prefix)))
    return bounds if machine is None else [*bounds, machine]


def _memory_cgroups(cgroup: Path, proc: Path) -> Iterator[Path]:
    """Folders of the cgroups that account for this process's memory, the innermost first."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        mount = cgroup if not controllers else cgroup / "memory"
        # A container may see only its own cgroup, mounted at the root, and be told its name outside of it.
        folder = mount / path.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = mount
        while True:
            yield folder
            if folder == mount:
                break
            folder = folder.parent


def _used(folder: Path, current: str, prefix: str) -> Callable[[], int]:
    names = (f"{prefix}inactive_file", f"{prefix}active_file")

    def used() -> int:
        # Pages of files, such as the reference cache's, are given back rather than that a process is killed.
        fields = (line.split() for line in _text(folder / "memory.stat").splitlines())
        files = sum(int(field[1]) for field in fields if len(field) == 2 and field[0] in names)
        return max(0, (_number(folder / current) or 0) - files)

    return used


def _machine(proc: Path) -> MemoryBound | None:
    def value(name: str) -> int | None:
        for line in _text(proc / "meminfo").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        return None

    total = value("MemTotal")
    if total is None:
        return None
    return MemoryBound("machine", total, lambda: total - (value("MemAvailable") or total))


def _quota(cgroup: Path) -> float | None:
    both = _read(cgroup / "cpu.max") or [
        *_read(cgroup / "cpu" / "cpu.cfs_quota_us"),
        *_read(cgroup / "cpu" / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = (int(part) for part in both)
    except ValueError:  # It says "max", or there is no such file.
        return None
    return quota / period if quota > 0 and period > 0 else None


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _read(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
