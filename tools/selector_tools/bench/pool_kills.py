"""Kills a worker, a node and a driver of `selector reference score --ray` in mid-run, and counts what is lost."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from selector_tools.bench.ray_nodes import Nodes, nodes
from selector_tools.bench.synthetic_pool import write_pool
from selector_tools.pools import scores
from selector_tools.pools.opening import open_pool

SHARDS, PAIRS = 16, 32
_WAIT_SECONDS = 300.0


class Driver:
    """`selector reference score --ray` in a process of its own, which writes to the place `out`; `more` are flags."""

    def __init__(self, reference: Path, pool: Path | str, out: Path | str, address: str, *more: str) -> None:
        flags = {"--reference": reference, "--pool": pool, "--out": out, "--ray": address}
        words = [str(word) for flag in flags.items() for word in flag]
        command = [sys.executable, "-m", "selector_tools.cli", "reference", "score", "--json", *words, *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._out = out

    def files(self) -> dict[str, int]:
        """Returns the files that are written, and when each was, in nanoseconds."""
        return {file: os.stat(file).st_mtime_ns for file in scores.files_in(str(self._out))}

    def wait_for(self, what: Callable[[], Any]) -> None:
        """Waits until something is true while this runs."""
        until = time.monotonic() + _WAIT_SECONDS
        while not what():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the command ended or took {_WAIT_SECONDS:.0f} s too long: {self.kill()}")
            time.sleep(0.02)

    def kill(self) -> str:
        """Kills it; returns what it has said to people."""
        self.process.kill()
        return self.process.communicate()[1]

    def said(self) -> dict[str, Any]:
        """Waits for its end, and returns what it said."""
        out, err = self.process.communicate(timeout=_WAIT_SECONDS)
        if self.process.returncode:
            raise RuntimeError(f"the command ended with {self.process.returncode}: {err}")
        found: dict[str, Any] = json.loads(out)
        return found


@contextmanager
def driving(reference: Path, pool: Path | str, out: Path | str, address: str, *more: str) -> Iterator[Driver]:
    """Yields such a Driver, which is killed at the end if it still runs."""
    driver = Driver(reference, pool, out, address, *more)
    try:
        yield driver
    finally:
        driver.kill()


def killed(reference: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Returns, by what was killed, the pairs that are lost and twice, how many shards were done at the kill, and how
    many of those were made again."""
    pool = write_pool(folder / "pool-for-kills", SHARDS, PAIRS)
    expected = Counter(
        str(name) for part in open_pool(str(pool)).shards() for batch in part.batches(64) for name in batch.ids
    )
    found: dict[str, dict[str, int]] = {}
    with nodes(1) as cluster:
        second = cluster.add(1)
        for what in ("worker", "driver", "node"):
            # A few pairs at a time, so that a shard takes long enough to be killed in its midst.
            few = ("--batch", "2", "--workers", "2")
            start = partial(driving, reference, pool, folder / f"out-{what}", cluster.address, *few)
            with start() as driver:
                before = _kill(what, driver, cluster, second)
                if what != "driver":
                    driver.said()
            if what == "driver":
                with start() as driver:
                    driver.said()
            after = driver.files()
            there = Counter(str(name) for file in after for name in scores.read_ids(file))
            found[what] = {
                "lost": (expected - there).total(),
                "twice": (there - expected).total(),
                "pairs": expected.total(),
                "shards_before": len(before),
                "shards_made_again": sum(after.get(file) != at for file, at in before.items()),
            }
    return found


def _kill(what: str, driver: Driver, cluster: Nodes, second: Any) -> dict[str, int]:
    """Kills in mid-run; returns the files that were written by then."""
    driver.wait_for(lambda: len(driver.files()) >= 2)
    if what == "driver":
        driver.kill()
    elif what == "worker":
        driver.wait_for(cluster.kill_worker)
    else:
        driver.wait_for(lambda: cluster.workers(second))
        cluster.kill(second)
    return driver.files()
