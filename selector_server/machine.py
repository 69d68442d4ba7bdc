"""What this process may use of the machine it runs on."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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
