"""How every benchmark measures: contenders take turns, medians are compared, and the machine is described."""

import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import selector_proto
import torch


def seconds_of(call: Callable[[], object]) -> float:
    """Returns how long the call took."""
    started = perf_counter()
    call()
    return perf_counter() - started


def in_turns(
    contenders: Mapping[str, Callable[[], float]],
    repeats: int,
    *,
    warm_up: int = 0,
    fewer: Mapping[str, int] | None = None,
    on_run: Callable[[str, int, float], None] = lambda *_: None,
) -> dict[str, list[float]]:
    """Returns the seconds of every run, by contender; each contender returns the seconds of its own run.

    Contenders take turns, so that a machine that becomes busy slows all of them alike. The first `warm_up` rounds do
    not count. `fewer` names slow contenders that drop out after so many rounds. `on_run(name, round, seconds)` is
    called after each run.
    """
    limits = dict.fromkeys(contenders, repeats) | dict(fewer or {})
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + repeats):
        for name, run in contenders.items():
            if turn < warm_up + limits[name]:
                took = run()
                on_run(name, turn, took)
                if turn >= warm_up:
                    seconds[name].append(took)
    return seconds


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the median of each list."""
    return {name: median(some) for name, some in values.items()}


def paired_ratio(upper: Iterable[float], lower: Iterable[float]) -> float:
    """Returns the median of upper / lower over runs that were made in turn: what the machine did to both cancels."""
    return median(a / b for a, b in zip(upper, lower, strict=True))


def ratio_with_interval(
    upper: Sequence[float], lower: Sequence[float], together: int = 1
) -> tuple[float, tuple[float, float]]:
    """Returns sum of upper / sum of lower over runs that were made in turn, which counts what only some runs pay for,
    and its 95 % interval by a bootstrap of pairs. So many neighbours that were made by the same processes stay
    `together`, for a process may be quicker than another one by itself."""
    a, b = (np.asarray(values).reshape(-1, together).sum(axis=1) for values in (upper, lower))
    again = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    low, high = np.percentile(a[again].sum(axis=1) / b[again].sum(axis=1), (2.5, 97.5))
    return float(a.sum() / b.sum()), (float(low), float(high))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of two values or more and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def percentile_of_buckets(buckets: Mapping[float, float], share: float) -> float | None:
    """Returns the value below which `share` (0 to 1) of a Prometheus histogram's observations lie.

    `buckets` are cumulative counts by upper edge. As in Prometheus, observations count as spread evenly within their
    bucket, and those beyond the last finite edge as lying at it. None stands for a histogram without observations.
    """
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if not total:
        return None
    low = below = 0.0
    for edge in edges[:-1]:
        if buckets[edge] >= share * total:
            return low + (edge - low) * (share * total - below) / (buckets[edge] - below)
        low, below = edge, buckets[edge]
    return low


def describe(device: str) -> dict[str, Any]:
    """Returns what a figure is worth nothing without: the device, versions, threads, and how busy the machine was."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _cpu() if device == "cpu" else torch.get_device_module(device).get_device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "jest-selector": selector_proto.__version__,
        },
    }


def _cpu() -> str:
    """Returns the processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
