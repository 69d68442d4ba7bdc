"""How long a version takes from the trainer to being served, how long the trainer is held up, and what both are
compared with."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis
import torch
from selector_client import Canary, WeightPublisher
from selector_proto.weights.layout import CHUNK_BYTES

from selector_tools.bench.learners import Learner, canary
from selector_tools.bench.measuring import in_turns, medians, paired_ratio, seconds_of
from selector_tools.bench.sidecars import FollowingSidecar, following

WARM_UP = 3  # after so many versions, all buffers of the publisher and of the sidecar have been used once
TRAINER_REPEATS = 20
CANARY_SAMPLES = 16
PHASES = ("snapshot", "ship", "notice", "fetch", "bind")


def publish_to_serving(module: Learner, bundle: Path, url: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Publishes one version after the other, without and with a canary, and runs the bare loop in turn with them."""
    samples, client = canary(module, CANARY_SAMPLES), redis.Redis.from_url(url)
    plain: list[dict[str, float]] = []
    checked: list[dict[str, float]] = []
    raw: list[float] = []
    with (
        following(folder / "sidecar.log", url, "phases", "--learner", str(bundle)) as sidecar,
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
        "over_raw": paired_ratio((one["total"] for one in plain), raw),
        "phase_seconds": phases,
        "raw_seconds": median(raw),
        "canary_seconds": median(b["bind"] - a["bind"] for a, b in zip(plain, checked, strict=True)),
        "with_canary_seconds": median(one["total"] for one in checked),
        "payload_bytes": len(payload),
        "seconds": {"publish_to_serving": [one["total"] for one in plain], "raw": raw},
    }


def _one(
    module: Learner, publisher: WeightPublisher, sidecar: FollowingSidecar, checked: Canary | None
) -> dict[str, float]:
    """Publishes one version and returns the seconds of each phase. `notice` is what no other phase takes: it is small,
    or below zero where the sidecar starts while the publisher still drops an old version."""
    before, version = sidecar.phase_seconds(), publisher.last_version
    started = time.perf_counter()
    publisher.publish(version, module, checked)
    taken = time.perf_counter()
    _ship(publisher)
    if publisher.last_version == version:
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
    """Returns the seconds of a bare loop that sets and gets every chunk over one connection, and does nothing else."""
    pieces = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]

    def there_and_back() -> None:
        for index, piece in enumerate(pieces):
            client.set(f"raw:{index}", piece)
        for index in range(len(pieces)):
            client.get(f"raw:{index}")

    seconds = seconds_of(there_and_back)
    client.unlink(*(f"raw:{index}" for index in range(len(pieces))))
    return seconds


def _ship(publisher: WeightPublisher) -> None:
    if not publisher.flush(120.0):
        raise RuntimeError(f"publishing failed: {publisher.last_error}")


def trainer_blocked(module: Learner, url: str) -> dict[str, Any]:
    """Returns what publish() costs the trainer, against copies of the same weights between warm buffers. No sidecar
    follows this run, and the publisher is idle at each call."""
    state = {name: value.detach() for name, value in module.state_dict().items()}
    buffers = {name: torch.empty_like(value) for name, value in state.items()}
    flat = np.ones(sum(value.numel() for value in state.values()), np.float32)
    other, steps = np.ones_like(flat), count()

    def copy() -> None:
        for name, value in state.items():
            buffers[name].copy_(value)

    with WeightPublisher(url, "blocked") as publisher:

        def publish() -> float:
            seconds = seconds_of(partial(publisher.publish, next(steps), module))
            _ship(publisher)
            return seconds

        contenders: dict[str, Callable[[], float]] = {
            "publish": publish,
            "memcpy": partial(seconds_of, partial(np.copyto, other, flat)),
            "torch_copy": partial(seconds_of, copy),
        }
        middle = medians(in_turns(contenders, TRAINER_REPEATS, warm_up=WARM_UP))
    return {
        "trainer_blocked_over_memcpy": middle["publish"] / middle["memcpy"],
        "trainer_blocked_over_torch_copy": middle["publish"] / middle["torch_copy"],
        "trainer_seconds": middle,
    }
