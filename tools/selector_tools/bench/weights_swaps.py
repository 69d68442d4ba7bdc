"""What swaps of weights cost the requests that are served meanwhile, and what many swaps leave behind."""

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

from selector_tools.bench import pinning
from selector_tools.bench.learners import IMAGE, TEXT, learner
from selector_tools.bench.measuring import seconds_of
from selector_tools.bench.memory import resident_bytes
from selector_tools.bench.sidecars import FollowingSidecar, following
from selector_tools.bench.synthetic import Samples

CANDIDATES = 128
SWAP_SECONDS = 1.0  # between versions, as trainers publish every few steps
BLOCKS = 4  # of requests without swaps, which take turns with as many blocks of requests with swaps
LIGHT_LOAD_SECONDS = 0.1  # between requests of the soak
SETTLED_AFTER = 50  # the swap of the soak after which memory is first read
WAIT_SECONDS = 60.0
_FLAGS = ("--threads", "1", "--max-pending-requests", "1000", "--log-level", "warning")
_IDENTIFY_SECONDS = 2.0


def during_swaps(flags: tuple[str, ...], url: str, folder: Path, parameters: float, requests: int) -> dict[str, Any]:
    """Returns the p99 of requests while versions come one after the other, over the p99 without versions.

    Requests come evenly spaced in an open loop at half of the sidecar's capacity, and are timed from when they were
    due."""
    samples = _samples()
    with (
        following(folder / "swaps.log", url, "swaps", *flags, *_FLAGS) as sidecar,
        _publishing(url, "swaps", parameters) as swapping,
    ):
        swapping.set()
        sidecar.wait_for(5)  # all its threads exist by then
        pinned = _pin(sidecar)
        swapping.clear()
        try:
            selector = sidecar.selector
            interval = 2 * median(_seconds(selector, samples) for _ in range(100))
            still: list[tuple[float, float]] = []
            moving: list[tuple[float, float]] = []
            swaps, swap_seconds = 0, 0.0
            for _ in range(BLOCKS):
                sidecar.wait_until_settled()
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


def _pin(sidecar: FollowingSidecar) -> dict[str, Any]:
    """Binds the sidecar's threads to one core, but those that take over weights to the other core, with everything
    else. The latter are the threads that work while versions come and no request does."""
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


def _open_loop(selector: Selector, samples: dict[str, Any], interval: float, count: int) -> list[tuple[float, float]]:
    """Returns for each request the seconds since it was due, and those that it spent inside the sidecar."""

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
    return seconds_of(lambda: selector.select(**samples))


def _samples() -> dict[str, Any]:
    return Samples.random(CANDIDATES, IMAGE, TEXT, np.random.default_rng(0), files=False).arrays


@contextmanager
def _publishing(url: str, run: str, parameters: float) -> Iterator[Event]:
    """Runs a trainer in a process of its own, which publishes at even intervals while the yielded event is set."""
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
    """Returns the sidecar's resident memory after the first swaps and after all, under a request now and then."""
    module, _ = learner(parameters)
    settled, samples, resident = min(SETTLED_AFTER, swaps // 2), _samples(), []
    with (
        following(folder / "soak.log", url, "soak", *flags, *_FLAGS) as sidecar,
        WeightPublisher(url, "soak") as publisher,
        _light_load(sidecar.selector, samples) as requests,
    ):
        started = time.perf_counter()
        for number in range(1, swaps + 1):
            publisher.publish(number, module)
            publisher.flush(WAIT_SECONDS)
            sidecar.wait_for(publisher.last_version)
            if number in (settled, swaps) or (number > settled and number % max(1, swaps // 10) == 0):
                resident.append([number, resident_bytes(sidecar.pid)])
        seconds = time.perf_counter() - started
        sidecar.wait_until_settled()
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
    """Sends requests one at a time, with pauses, and yields the growing list of their seconds."""
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
