"""What this process may use of the machine it runs on."""

import ctypes
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# glibc's mallopt: names of its settings, blocks up to which memory freed is kept, and how much of it at most.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BLOCK_BYTES, KEPT_BYTES = 32 << 20, 128 << 20


def keep_freed_memory() -> None:
    """Lets the allocator keep what requests free for the next ones. By default it gives megabytes back to the system
    each time, and their first touch costs more than what is computed in them. Only glibc knows how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs by affinity and by the cgroup's quota (v2, then v1), rounded up; at least 1. A pod limited to two CPUs
    still sees all of its node's, and a thread for each would fight over two."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    both = _read(cgroup / "cpu.max") or [
        *_read(cgroup / "cpu" / "cpu.cfs_quota_us"),
        *_read(cgroup / "cpu" / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = (int(part) for part in both)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
