"""How many threads copy large memory at once."""

import os

MAX_COPIERS = 4


def copiers() -> int:
    """One for each processor that this process may use; more than fill a memory bus would only take turns."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_COPIERS, usable or 1)
