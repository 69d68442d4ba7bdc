"""How long a version takes from the trainer to being served, and what it is compared with."""

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis
import torch
from selector_client import Canary, Selector, WeightPublisher
from selector_proto.weights import CHUNK_BYTES

from selector_tools.bench.learners import Learner, canary
from selector_tools.processes import free_port, sidecar_process

POLL_SECONDS = 0.02  # more often, asking would take a part of the core that is measured
WARM_UP = 3  # versions after which all buffers, of the publisher and of the sidecar, have been used once
TRAINER_REPEATS = 20
CANARY_SAMPLES = 16
PHASES = ("snapshot", "ship", "notice", "fetch", "bind")


class Served:
    """A sidecar that follows a run, and how it gets on."""

    def __init__(self, address: str, pid: int, metrics_port: int, selector: Selector) -> None:
        self.address, self.pid, self.selector = address, pid, selector
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"

    def wait_for(self, version: int, seconds: float = 120.0) -> float:
        """The moment (perf_counter) at which it was first seen to serve `version` or a later one."""
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            status = self.selector.weights_status()
            if status.serving.version >= version:
                return time.perf_counter()
            if status.rejections:
                raise RuntimeError(f"the sidecar refused version {version}: {status.last_error}")
            time.sleep(max(0.0, POLL_SECONDS - (time.perf_counter() - now)))
        raise RuntimeError(f"the sidecar did not serve version {version} within {seconds} s: {status.last_error}")

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that fetching and binding took since the start, by the sidecar's own metrics."""
        with urllib.request.urlopen(self._metrics, timeout=10) as page:  # noqa: S310 - our own server
            lines = page.read().decode().splitlines()
        name = 'selector_weights_sync_duration_seconds_sum{phase="'
        found = (line.removeprefix(name).split('"} ') for line in lines if line.startswith(name))
        seconds = {phase: float(value) for phase, value in found}
        fetch = seconds.pop("fetch", 0.0)
        return {"fetch": fetch, "bind": sum(seconds.values())}


@contextmanager
def served(log: Path, url: str, run: str, *flags: str) -> Iterator[Served]:
    """`selector serve` in a process of its own, following `run`."""
    port = free_port()
    more = ("--redis", url, "--run", run, "--metrics-listen", f"127.0.0.1:{port}")
    with sidecar_process(log, *more, *flags) as (address, pid), Selector(address, timeout=60.0) as selector:
        yield Served(address, pid, port, selector)


def publish_to_serving(module: Learner, bundle: Path, url: str, folder: Path, repeats: int) -> dict[str, Any]:
    """One version after the other, each with and without a canary, and the bare loop in turn with them."""
    samples, client = canary(module, CANARY_SAMPLES), redis.Redis.from_url(url)
    plain: list[dict[str, float]] = []
    checked: list[dict[str, float]] = []
    raw: list[float] = []
    with (
        served(folder / "sidecar.log", url, "phases", "--learner", str(bundle)) as sidecar,
        WeightPublisher(url, "phases") as publisher,
    ):
        for _ in range(WARM_UP):
            _one(module, publisher, sidecar, None)
        payload = _random(_payload_bytes(client, publisher.last_version))
        _raw(client, payload)
        for _ in range(repeats):
            plain.append(_one(module, publisher, sidecar, None))
            raw.append(_raw(client, payload))
            checked.append(_one(module, publisher, sidecar, samples))
    client.close()
    phases = {name: median(one[name] for one in plain) for name in PHASES}
    return {
        "publish_to_serving_seconds": median(one["total"] for one in plain),
        "over_raw": median(one["total"] / floor for one, floor in zip(plain, raw, strict=True)),
        "phase_seconds": phases,
        "raw_seconds": median(raw),
        "canary_seconds": median(b["bind"] - a["bind"] for a, b in zip(plain, checked, strict=True)),
        "with_canary_seconds": median(one["total"] for one in checked),
        "payload_bytes": len(payload),
        "seconds": {"publish_to_serving": [one["total"] for one in plain], "raw": raw},
    }


def _one(module: Learner, publisher: WeightPublisher, sidecar: Served, checked: Canary | None) -> dict[str, float]:
    """Publishes; seconds of each phase. `notice` is what no other phase takes: it is small, or below zero where the
    sidecar starts while the publisher still drops an old version."""
    before, version = sidecar.phase_seconds(), publisher.last_version
    started = time.perf_counter()
    publisher.publish(version, module, checked)
    taken = time.perf_counter()
    if not publisher.flush(120.0) or publisher.last_version == version:
        raise RuntimeError(f"publishing failed: {publisher.last_error}")
    shipped = time.perf_counter()
    total = sidecar.wait_for(publisher.last_version) - started
    after = sidecar.phase_seconds()
    phases = {"snapshot": taken - started, "ship": shipped - taken} | {
        name: after[name] - before[name] for name in after
    }
    return {**phases, "notice": total - sum(phases.values()), "total": total}


def _payload_bytes(client: Any, version: int) -> int:
    keys = client.scan_iter(f"selector:{{phases}}:weights:{version}:chunk:*", count=1000)
    return sum(client.strlen(key) for key in keys)


def _random(size: int) -> memoryview:
    return np.random.default_rng(0).integers(0, 256, size, np.uint8).data


def _raw(client: Any, payload: memoryview) -> float:
    """Seconds of a bare loop: SET every chunk, GET every chunk, one connection, nothing else."""
    pieces = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
    started = time.perf_counter()
    for index, piece in enumerate(pieces):
        client.set(f"raw:{index}", piece)
    for index in range(len(pieces)):
        client.get(f"raw:{index}")
    seconds = time.perf_counter() - started
    client.unlink(*(f"raw:{index}" for index in range(len(pieces))))
    return seconds


def trainer_blocked(module: Learner, url: str) -> dict[str, Any]:
    """What publish() costs the trainer, against copies of the same weights between warm buffers. No sidecar follows
    this run, and the publisher is idle at each call."""
    state = {name: value.detach() for name, value in module.state_dict().items()}
    buffers = {name: torch.empty_like(value) for name, value in state.items()}
    flat = np.ones(sum(value.numel() for value in state.values()), np.float32)
    other = np.ones_like(flat)
    seconds: dict[str, list[float]] = {"publish": [], "memcpy": [], "torch_copy": []}
    with WeightPublisher(url, "blocked") as publisher:
        for repeat in range(WARM_UP + TRAINER_REPEATS):
            times = [time.perf_counter()]
            publisher.publish(repeat, module)
            times.append(time.perf_counter())
            if not publisher.flush(120.0):
                raise RuntimeError(f"publishing failed: {publisher.last_error}")
            times.append(time.perf_counter())
            np.copyto(other, flat)
            times.append(time.perf_counter())
            for name, value in state.items():
                buffers[name].copy_(value)
            times.append(time.perf_counter())
            if repeat >= WARM_UP:
                for name, index in (("publish", 0), ("memcpy", 2), ("torch_copy", 3)):
                    seconds[name].append(times[index + 1] - times[index])
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "trainer_blocked_over_memcpy": medians["publish"] / medians["memcpy"],
        "trainer_blocked_over_torch_copy": medians["publish"] / medians["torch_copy"],
        "trainer_seconds": medians,
    }
