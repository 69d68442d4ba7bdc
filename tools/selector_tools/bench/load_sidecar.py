"""The sidecar under load: pinned to a core of its own, killed and started again, watched through its own metrics."""

import os
import signal
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from selector_client import Selector

from selector_tools.bench import pinning
from selector_tools.processes import free_port, sidecar_process


class LoadedSidecar:
    """`selector serve` with one thread and these flags; `core` is None where nothing can be pinned."""

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
        """The moment (perf_counter) of its death; returns when the new process serves."""
        died = time.perf_counter()
        os.kill(self.pid, signal.SIGKILL)
        self._stack.close()  # collects the dead
        self._start()
        return died

    def max_pending(self) -> int:
        """Requests that it takes at once."""
        with Selector(self.address) as selector:
            return selector.connect(timeout=10.0).limits.max_pending_requests

    def rejects(self) -> dict[float, float]:
        """Refused requests so far, by the most seconds that they took (Prometheus's cumulative buckets)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=30) as page:
            families = text_string_to_metric_families(page.read().decode())
            name = "selector_reject_duration_seconds"
            samples = [sample for family in families if family.name == name for sample in family.samples]
        return {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}

    def resident_bytes(self) -> int:
        return pinning.resident_bytes(self.pid)

    def _start(self) -> None:
        process = sidecar_process(self._log, *self._flags, address=self.address, cores=self._cores)
        _, self.pid = self._stack.enter_context(process)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Below which `share` of the observations lie, spread evenly within each bucket as Prometheus does; the last
    finite edge if it lies beyond it, and None without observations."""
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
