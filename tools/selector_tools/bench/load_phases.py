"""What the load benchmark does to the sidecar: a ramp to its peak, rounds below and above it, a soak and a kill."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from selector_server.errors import NotPossible
from selector_tools.bench.load_trainers import Outcome, Trainers
from selector_tools.bench.measuring import percentile_of_buckets
from selector_tools.bench.sidecars import LoadedSidecar

FACTORS = (0.5, 1.0, 1.5, 2.0)  # shares of the peak at which loads are offered
# Queues fill while a loop runs so long, or a quarter of its time if that is less; what comes then does not count.
LEAD_SECONDS = 1.0
SOAK_TICK_SECONDS = 0.5
BEFORE_KILL_SECONDS, AFTER_RESTART_SECONDS, LONGEST_RECOVERY_SECONDS = 2.0, 2.0, 100.0


@dataclass
class Window:
    """The requests of one loop. What counts lies between `start` and `end` (perf_counter). `busy` is the processor time
    per second of the trainers' process, and `rejects` are refusals by Prometheus's cumulative buckets."""

    start: float
    end: float
    outcomes: list[Outcome]
    busy: float
    rejects: dict[float, float] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """How many right answers came per second."""
        right = (o for o in self.outcomes if o.code == "OK" and not o.wrong and self.start <= o.done < self.end)
        return sum(1 for _ in right) / (self.end - self.start)

    @property
    def counted(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if self.start <= outcome.due < self.end]


def windowed(run: Callable[[], Future[list[Outcome]]], seconds: float, sidecar: LoadedSidecar) -> Window:
    """Runs a loop of so many seconds to its end and returns what came of it."""
    before, busy, began = sidecar.rejects(), time.process_time(), time.perf_counter()
    outcomes = run().result()
    busy = (time.process_time() - busy) / (time.perf_counter() - began)
    rejects = {edge: count - before.get(edge, 0.0) for edge, count in sidecar.rejects().items()}
    return Window(began + min(LEAD_SECONDS, seconds / 4), began + seconds, outcomes, busy, rejects)


def ramp(trainers: Trainers, sidecar: LoadedSidecar, seconds: float) -> dict[int, Window]:
    """Runs closed loops with 1, 2, 4, … requests under way, up to what the sidecar takes at once."""
    most = sidecar.max_pending()
    steps = (2**power for power in range(most.bit_length()))
    return {n: windowed(partial(trainers.closed, n, seconds), seconds, sidecar) for n in steps}


def peak(trainers: Trainers, sidecar: LoadedSidecar, in_flight: int, seconds: float) -> Window:
    """Runs a closed loop, whose goodput is the peak. Raises NotPossible if nothing was answered."""
    window = windowed(partial(trainers.closed, in_flight, seconds), seconds, sidecar)
    if not window.goodput:
        raise NotPossible("--seconds", seconds, "too few: not one request was answered")
    return window


def loads(trainers: Trainers, sidecar: LoadedSidecar, goodput: float, seconds: float) -> list[Window]:
    """Runs open loops at FACTORS of the peak's goodput."""
    rates = (factor * goodput for factor in FACTORS)
    return [windowed(partial(trainers.open, rate, seconds), seconds, sidecar) for rate in rates]


def goodput_ratio(peaks: list[Window], twices: list[Window]) -> float:
    """Returns goodput at twice the peak over the mean of the peaks before and after it, as the median over rounds."""
    means = (fmean((before.goodput, after.goodput)) for before, after in pairwise(peaks))
    return median(twice.goodput / mean for twice, mean in zip(twices, means, strict=True))


def soak(trainers: Trainers, sidecar: LoadedSidecar, rate: float, seconds: float) -> tuple[Window, dict[str, Any]]:
    """Runs an open loop, and returns how the sidecar's resident memory grew from its second quarter to its last one."""
    resident: list[int] = []

    def run() -> Future[list[Outcome]]:
        loop = trainers.open(rate, seconds)
        while not loop.done():
            resident.append(sidecar.resident_bytes())
            time.sleep(SOAK_TICK_SECONDS)
        return loop

    window = windowed(run, seconds, sidecar)
    quarter = max(1, len(resident) // 4)
    first, last = (median(part) for part in (resident[quarter : 2 * quarter] or resident, resident[-quarter:]))
    growth = {"rss_growth": last / first - 1, "resident_bytes": {"second_quarter": first, "last_quarter": last}}
    return window, growth


def recovery(trainers: Trainers, sidecar: LoadedSidecar, rate: float) -> tuple[list[Outcome], float]:
    """Kills the sidecar (-9) under load and starts it again. Returns all outcomes, and the seconds until every trainer
    has got a right answer again."""
    loop = trainers.open(rate, LONGEST_RECOVERY_SECONDS)
    time.sleep(BEFORE_KILL_SECONDS)
    died = sidecar.kill_and_restart()
    time.sleep(AFTER_RESTART_SECONDS)
    trainers.stop()
    outcomes = loop.result()
    first: dict[int, float] = {}
    for outcome in sorted(outcomes, key=lambda o: o.done):
        if outcome.due > died and outcome.code == "OK" and not outcome.wrong:
            first.setdefault(outcome.trainer, outcome.done)
    if missing := {outcome.trainer for outcome in outcomes} - first.keys():
        raise RuntimeError(f"trainers {sorted(missing)} got no right answer after the restart")
    return outcomes, max(first.values()) - died


def milliseconds(seconds: Iterable[float], share: float) -> float | None:
    values = list(seconds)
    return 1000 * float(np.quantile(values, share)) if values else None


def statuses(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Counts requests by gRPC status."""
    return dict(Counter(outcome.code for outcome in outcomes))


def figures(windows: list[Window]) -> dict[str, Any]:
    """Returns figures of windows of one kind taken together; the goodput is their median."""
    counted = [outcome for window in windows for outcome in window.counted]
    accepted = [o.seconds for o in counted if o.code == "OK"]
    refused = [o.seconds for o in counted if o.code == "RESOURCE_EXHAUSTED"]
    rejects: Counter[float] = Counter()
    for window in windows:
        rejects.update(window.rejects)
    p50, p99 = (percentile_of_buckets(rejects, share) for share in (0.5, 0.99))
    return {
        "selections_per_second": median(window.goodput for window in windows),
        "status": statuses(counted),
        "accepted_p50_ms": milliseconds(accepted, 0.5),
        "accepted_p99_ms": milliseconds(accepted, 0.99),
        "reject_p50_ms": None if p50 is None else 1000 * p50,
        "reject_p99_ms": None if p99 is None else 1000 * p99,
        "reject_client_p50_ms": milliseconds(refused, 0.5),
        "reject_client_p99_ms": milliseconds(refused, 0.99),
        "late_p99_ms": milliseconds((o.late for o in counted), 0.99),
        "trainers_busy": median(window.busy for window in windows),
    }
