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


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Bytes that this process may take: the cgroup's limit (v2, then v1), at most the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = _read(cgroup / "memory.max") or _read(cgroup / "memory" / "memory.limit_in_bytes")
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def resident(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Bytes of this process that are in memory: anonymous (its own), of files (libraries, the cache), shared. Empty
    where the system does not say."""
    kinds = {"RssAnon:": "anonymous", "RssFile:": "file", "RssShmem:": "shared"}
    words = _read(status)
    return {kinds[word]: int(words[at + 1]) * 1024 for at, word in enumerate(words) if word in kinds}


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
