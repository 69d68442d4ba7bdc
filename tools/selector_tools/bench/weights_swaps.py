"""What swaps cost the requests that are served meanwhile, and what many of them leave behind."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

import numpy as np
from selector_client import Selector, WeightPublisher

from selector_server.encoding.export import export_learner, export_reference
from selector_tools.bench import pinning
from selector_tools.bench.learners import IMAGE, TEXT, learner
from selector_tools.bench.sidecars import Samples
from selector_tools.bench.weights_phases import Served, served

CANDIDATES = 128
SWAP_SECONDS = 1.0  # between versions: trainers publish every few steps
BLOCKS = 4  # of requests without swaps, and as many with, in turns
LIGHT_LOAD_SECONDS = 0.1  # between requests of the soak
SETTLED_AFTER = 50  # swaps of the soak
WAIT_SECONDS = 60.0
_FLAGS = ("--threads", "1", "--max-pending-requests", "1000", "--log-level", "warning")
_IDENTIFY_SECONDS = 2.0


def bundles(folder: Path, parameters: float) -> tuple[str, ...]:
    """Flags of a sidecar with a small learner and reference."""
    _, source = learner(parameters)
    export_learner(source, folder / "learner")
    export_reference(source, folder / "reference")
    return ("--learner", str(folder / "learner"), "--reference", str(folder / "reference"))


def during_swaps(flags: tuple[str, ...], url: str, folder: Path, parameters: float, requests: int) -> dict[str, Any]:
    """p99 of requests in an open loop at half of capacity, evenly spaced, while versions come one after the other,
    over the same without. Requests are timed from when they were due."""
    samples = _samples()
    with (
        served(folder / "swaps.log", url, "swaps", *flags, *_FLAGS) as sidecar,
        _publishing(url, "swaps", parameters) as swapping,
    ):
        swapping.set()
        sidecar.wait_for(5)  # by then all its threads exist
        pinned = _pin(sidecar)
        swapping.clear()
        try:
            selector = sidecar.selector
            interval = 2 * median(_seconds(selector, samples) for _ in range(100))
            still: list[tuple[float, float]] = []
            moving: list[tuple[float, float]] = []
            swaps, swap_seconds = 0, 0.0
            for _ in range(BLOCKS):
                _settled(sidecar)
                still += _open_loop(selector, samples, interval, -(-requests // BLOCKS))
                before, started = selector.weights_status().swaps, time.perf_counter()
                swapping.set()
                moving += _open_loop(selector, samples, interval, -(-requests // BLOCKS))
                swapping.clear()
                swaps += selector.weights_status().swaps - before
                swap_seconds += time.perf_counter() - started
        finally:
            if pinned["cores"]:
                pinning.pin(os.getpid(), pinned["usable"])
    (p99, p99_inside), (p99_moving, p99_moving_inside) = _p99(still), _p99(moving)
    return {
        "p99_during_swap_ratio": p99_moving / p99,
        "p99_seconds": {"without": p99, "during": p99_moving},
        "p99_inside_ratio": p99_moving_inside / p99_inside,
        "p99_inside_seconds": {"without": p99_inside, "during": p99_moving_inside},
        "median_seconds": {"without": median(t for t, _ in still), "during": median(t for t, _ in moving)},
        "requests": {"without": len(still), "during": len(moving)},
        "requests_per_second": 1 / interval,
        "swaps_per_second": swaps / swap_seconds,
        "pinned": pinned,
    }


def _pin(sidecar: Served) -> dict[str, Any]:
    """The sidecar's threads on one core, those that take over weights on the other with everything else; the latter
    are found by what works while versions come and no request does."""
    found = pinning.cores()
    if found is None:
        return {"cores": None}
    compute, rest = found
    usable = sorted(os.sched_getaffinity(0))
    taking_over = pinning.busy_threads(sidecar.pid, _IDENTIFY_SECONDS)
    pinning.pin(sidecar.pid, {compute})
    pinning.pin(sidecar.pid, {rest}, taking_over)
    pinning.pin(os.getpid(), {rest})
    return {"cores": [compute, rest], "usable": usable, "threads_that_take_over": len(taking_over)}


def _settled(sidecar: Served) -> None:
    """Waits until no version is under way."""
    swaps = -1
    while (now := sidecar.selector.weights_status().swaps) != swaps:
        swaps = now
        time.sleep(0.5)


def _open_loop(selector: Selector, samples: dict[str, Any], interval: float, count: int) -> list[tuple[float, float]]:
    """Seconds of each request since it was due, and those that it spent inside the sidecar."""

    def one(due: float) -> tuple[float, float]:
        stages = selector.select(**samples).stage_seconds
        return time.perf_counter() - due, sum(stages.values())

    with ThreadPoolExecutor(32) as pool:
        start, waiting = time.perf_counter() + interval, []
        for number in range(count):
            due = start + number * interval
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(pool.submit(one, due))
        return [future.result() for future in waiting]


def _p99(times: list[tuple[float, float]]) -> tuple[float, float]:
    outside, inside = np.percentile(np.array(times), 99, axis=0)
    return float(outside), float(inside)


def _seconds(selector: Selector, samples: dict[str, Any]) -> float:
    started = time.perf_counter()
    selector.select(**samples)
    return time.perf_counter() - started


def _samples() -> dict[str, Any]:
    return Samples.random(CANDIDATES, IMAGE, TEXT, np.random.default_rng(0), files=False).arrays


@contextmanager
def _publishing(url: str, run: str, parameters: float) -> Iterator[Event]:
    """A trainer in a process of its own that publishes at even intervals while the event is set."""
    context = multiprocessing.get_context("spawn")
    swapping, stop = context.Event(), context.Event()
    arguments = (url, run, parameters, swapping, stop)
    trainer = context.Process(target=_trainer, args=arguments, daemon=True)
    trainer.start()
    try:
        yield swapping
    finally:
        stop.set()
        swapping.set()
        trainer.join(WAIT_SECONDS)
        trainer.kill()


def _trainer(url: str, run: str, parameters: float, swapping: Event, stop: Event) -> None:
    if (found := pinning.cores()) is not None:
        pinning.pin(os.getpid(), {found[1]})
    module, _ = learner(parameters)
    with WeightPublisher(url, run) as publisher:
        while swapping.wait() and not stop.is_set():
            publisher.publish(publisher.published + 1, module)
            stop.wait(SWAP_SECONDS)


def soak(flags: tuple[str, ...], url: str, folder: Path, parameters: float, swaps: int) -> dict[str, Any]:
    """Resident memory of the sidecar after the first swaps and after all, under a request now and then."""
    module, _ = learner(parameters)
    settled, samples, resident = min(SETTLED_AFTER, swaps // 2), _samples(), []
    with (
        served(folder / "soak.log", url, "soak", *flags, *_FLAGS) as sidecar,
        WeightPublisher(url, "soak") as publisher,
        _light_load(sidecar.selector, samples) as requests,
    ):
        started = time.perf_counter()
        for number in range(1, swaps + 1):
            publisher.publish(number, module)
            publisher.flush(WAIT_SECONDS)
            sidecar.wait_for(publisher.last_version)
            if number in (settled, swaps) or (number > settled and number % max(1, swaps // 10) == 0):
                resident.append([number, pinning.resident_bytes(sidecar.pid)])
        seconds = time.perf_counter() - started
        _settled(sidecar)
        done = sidecar.selector.weights_status().swaps
    return {
        "rss_growth": resident[-1][1] / resident[0][1] - 1,
        "swaps": done,
        "settled_after": settled,
        "resident_bytes": resident,
        "seconds": seconds,
        "requests": len(requests),
    }


@contextmanager
def _light_load(selector: Selector, samples: dict[str, Any]) -> Iterator[list[float]]:
    """Requests one at a time, with pauses; yields their seconds so far."""
    stop, seconds = ThreadEvent(), list[float]()

    def work() -> None:
        while not stop.wait(LIGHT_LOAD_SECONDS):
            seconds.append(_seconds(selector, samples))

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
