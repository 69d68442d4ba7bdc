"""The sidecars that are measured: `selector serve` in processes of their own, and what they say of themselves."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from selector_client import Selection, Selector

from selector_tools.bench.memory import resident_bytes
from selector_tools.bench.serve_loops import Bundles
from selector_tools.processes import free_port, sidecar

POLL_SECONDS = 0.02  # asking more often would take a part of the core that is measured

# It takes samples as Selector.select does, or embeddings as select_embeddings does.
Ask = Callable[[dict[str, Any]], tuple[float, Selection]]


class TimedSidecar:
    """A sidecar with these bundles, whose answers are timed as a trainer sees them."""

    def __init__(self, bundles: Bundles, log: Path, *flags: str) -> None:
        self._bundles, self._log, self._flags = bundles, log, flags
        self._metrics_port, self._stack = free_port(), ExitStack()

    def __enter__(self) -> Self:
        models = ("--learner", str(self._bundles.learner.path), "--reference", str(self._bundles.reference.path))
        metrics = ("--metrics-listen", f"127.0.0.1:{self._metrics_port}")
        self._address = self._stack.enter_context(sidecar(self._log, *models, *metrics, *self._flags)).address
        self.select = self.asking(filter_ratio=0.8)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def asking(self, **settings: Any) -> Ask:
        """Returns a function that selects with these settings, jointly unless they say otherwise, and returns the
        seconds that it takes and the selection. The noise of its n-th selection does not depend on the settings."""
        rule = {"policy": "joint"} | settings
        selector = Selector(self._address, seed=0, timeout=600.0, on_error="raise", **rule)
        self._stack.enter_context(selector)

        def ask(samples: dict[str, Any]) -> tuple[float, Selection]:
            select = selector.select_embeddings if "learner" in samples else selector.select
            started = time.perf_counter()
            selection = select(**samples)
            return time.perf_counter() - started, selection

        return ask

    def encoded(self) -> int:
        """Returns how many images and texts it has encoded since its start, by its own metrics."""
        samples = _metric(self._metrics_port, "selector_micro_batch_samples")
        return int(sum(one.value for one in samples if one.name.endswith("_sum")))

    def wait_until_cached(self, samples: int, seconds: float = 120.0) -> None:
        """Waits until the sidecar's cache holds so many samples. Raises RuntimeError if that takes longer than
        `seconds`."""
        until = time.perf_counter() + seconds
        while (held := self._metric("selector_reference_cache_entries")) < samples:
            if time.perf_counter() > until:
                raise RuntimeError(
                    f"the sidecar's cache holds {held:.0f} samples after {seconds:g} s; "
                    f"{samples} were to be written; see {self._log}"
                )
            time.sleep(POLL_SECONDS)

    def _metric(self, name: str) -> float:
        [sample] = _metric(self._metrics_port, name)
        return sample.value


def median_stages(replies: Sequence[Selection]) -> dict[str, float]:
    """Returns the median seconds of each stage; a reply without the stage counts as zero."""
    stages = [reply.stage_seconds for reply in replies]
    return {name: median(s.get(name, 0.0) for s in stages) for name in sorted({n for s in stages for n in s})}


class FollowingSidecar:
    """A sidecar that follows a run's weights, and how it gets on with them."""

    def __init__(self, pid: int, metrics_port: int, selector: Selector) -> None:
        self.pid, self.selector, self._metrics_port = pid, selector, metrics_port

    def wait_for(self, version: int, seconds: float = 120.0) -> float:
        """Returns the moment (perf_counter) at which it was first seen to serve `version` or a later one.

        Raises RuntimeError if it refuses a version or takes longer than `seconds`.
        """
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            status = self.selector.weights_status()
            if status.serving.version >= version:
                return time.perf_counter()
            if status.rejections:
                raise RuntimeError(f"the sidecar refused version {version}: {status.last_error}")
            time.sleep(max(0.0, POLL_SECONDS - (time.perf_counter() - now)))
        raise RuntimeError(f"the sidecar did not serve version {version} within {seconds} s: {status.last_error}")

    def wait_until_settled(self) -> None:
        """Waits until no version is under way."""
        swaps = -1
        while (now := self.selector.weights_status().swaps) != swaps:
            swaps = now
            time.sleep(0.5)

    def phase_seconds(self) -> dict[str, float]:
        """Returns the seconds that fetching and binding took since the start, by the sidecar's own metrics."""
        samples = _metric(self._metrics_port, "selector_weights_sync_duration_seconds")
        seconds = {one.labels["phase"]: one.value for one in samples if one.name.endswith("_sum")}
        fetch = seconds.pop("fetch", 0.0)
        return {"fetch": fetch, "bind": sum(seconds.values())}


@contextmanager
def following(log: Path, url: str, run: str, *flags: str) -> Iterator[FollowingSidecar]:
    """Runs a sidecar that follows `run` at the Redis-protocol server `url`."""
    port = free_port()
    more = ("--redis", url, "--run", run, "--metrics-listen", f"127.0.0.1:{port}")
    with sidecar(log, *more, *flags) as (address, pid), Selector(address, timeout=60.0) as selector:
        yield FollowingSidecar(pid, port, selector)


class LoadedSidecar:
    """A sidecar with one thread that is driven to its limits; `core` is None where nothing can be pinned."""

    def __init__(self, folder: Path, core: int | None, *flags: str) -> None:
        self._log, self._cores = folder / "sidecar.log", None if core is None else {core}
        self._metrics_port, self._stack = free_port(), ExitStack()
        metrics = ("--metrics-listen", f"127.0.0.1:{self._metrics_port}")
        self._flags = (*flags, *metrics, "--threads", "1", "--log-level", "warning")
        self.address, self.pid = f"127.0.0.1:{free_port()}", 0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def kill_and_restart(self) -> float:
        """Returns the moment (perf_counter) of its death, once a new process serves at the same address."""
        died = time.perf_counter()
        self.kill()
        self.restart()
        return died

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Returns once a new process serves at the address of the one that was killed."""
        self._stack.close()  # this collects the dead process
        self._start()

    def max_pending(self) -> int:
        """Returns how many requests it takes at once."""
        with Selector(self.address) as selector:
            return selector.connect(timeout=10.0).limits.max_pending_requests

    def rejects(self) -> dict[float, float]:
        """Returns Prometheus's cumulative buckets: refused requests so far, by the most seconds that they took."""
        samples = _metric(self._metrics_port, "selector_reject_duration_seconds")
        return {float(one.labels["le"]): one.value for one in samples if one.name.endswith("_bucket")}

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def _start(self) -> None:
        running = sidecar(self._log, *self._flags, address=self.address, cores=self._cores)
        _, self.pid = self._stack.enter_context(running)


def _metric(port: int, name: str) -> list[Sample]:
    """Returns all samples of one metric from a sidecar's metrics address."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        families = text_string_to_metric_families(page.read().decode())
        return [sample for family in families if family.name == name for sample in family.samples]
