"""The arms of the demo: the same trainer on the same pool, fed in different ways."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from selector_client import SelectingLoader, Selector, WeightPublisher

from selector_tools.demo.data import Pairs, ZeroShot, draws
from selector_tools.demo.model import SmallSigLip
from selector_tools.demo.results import Arm
from selector_tools.demo.training import train
from selector_tools.processes import sidecar

# How the sidecar picks, by the arm's name on the command line; uniform needs no sidecar.
SELECTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "jest": {"policy": "joint"},
    "independent": {"policy": "independent"},
    "easy-reference": {"policy": "independent", "criterion": "easy-reference", "draw": "top-k"},
}


@dataclass(frozen=True)
class Setting:
    """What all arms share. `mislabelled`, bool [n], marks the pool's rows whose caption is wrong."""

    pairs: Pairs
    mislabelled: NDArray[np.bool_]
    evaluate: ZeroShot
    vocabulary: int
    batch: int
    filter_ratio: float
    learning_rate: float
    publish_every: int
    seed: int
    redis: str
    learner: Path
    reference: Path
    cache: Path
    log: Path

    @property
    def super_batch(self) -> int:
        return round(self.batch / (1 - self.filter_ratio))

    def fresh_model(self) -> SmallSigLip:
        """Returns a model with the same weights at every call; the learner's bundle has them, too."""
        torch.manual_seed(self.seed)
        return SmallSigLip(self.vocabulary)


@dataclass(frozen=True)
class Snapshot:
    """One super-batch: its rows in the pool [B], the indices that the sidecar picked [b], and each candidate's own
    score [B] in nats."""

    step: int
    rows: NDArray[np.int64]
    picked: NDArray[np.int64]
    scores: NDArray[np.float32]


def run_arm(
    kind: str, label: str, steps: int, setting: Setting, on_step: Callable[[int], None]
) -> tuple[Arm, Snapshot | None]:
    """Trains one arm from scratch, and takes a snapshot a third of the way in (None for uniform)."""
    with ExitStack() as stack:
        feed = _Uniform(setting) if kind == "uniform" else _Selected(kind, label, setting, steps, stack)
        run = train(
            setting.fresh_model(),
            iter(feed),
            steps,
            learning_rate=setting.learning_rate,
            evaluate=setting.evaluate,
            publisher=feed.publisher,
            on_step=on_step,
        )
        arm = Arm(
            name=label,
            steps=steps,
            trained=steps * setting.batch,
            scored=feed.scored,
            accuracy=run.accuracy,
            train_seconds=run.seconds,
            wait_seconds=feed.wait_seconds,
            versions=feed.versions,
            fallbacks=feed.fallbacks,
            mislabelled=float(setting.mislabelled[np.concatenate(run.rows)].mean()),
        )
        return arm, feed.snapshot


class _Uniform:
    """Batches that come straight from the pool."""

    publisher = None
    snapshot = None
    scored = versions = fallbacks = 0
    wait_seconds = 0.0

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def __iter__(self) -> Iterator[Any]:
        s = self._setting
        return (s.pairs.at(rows) for rows in draws(len(s.mislabelled), s.batch, s.seed))


class _Selected:
    """Sub-batches that a sidecar of this arm's own picks; it scores with the weights that the arm publishes."""

    def __init__(self, kind: str, label: str, setting: Setting, steps: int, stack: ExitStack) -> None:
        self._setting, self._steps = setting, steps
        self._snapshot_step = steps // 3
        self.snapshot: Snapshot | None = None
        run = "demo-" + "".join(c if c.isalnum() else "-" for c in label)
        flags = {
            "learner": setting.learner,
            "reference": setting.reference,
            "redis": setting.redis,
            "run": run,
            "threads": 1,
            "cache": setting.cache,
            "metrics-listen": "",
        }
        running = stack.enter_context(
            sidecar(setting.log, *(part for name, value in flags.items() for part in (f"--{name}", str(value))))
        )
        self._address = running.address
        self._selector = stack.enter_context(
            Selector(self._address, run=run, seed=setting.seed, sub_batch_size=setting.batch, **SELECTIONS[kind])
        )
        self.publisher = stack.enter_context(WeightPublisher(setting.redis, run, every=setting.publish_every))
        rows = draws(len(setting.mislabelled), setting.super_batch, setting.seed)
        super_batches = (setting.pairs.at(next(rows)) for _ in range(steps))
        # The demo's learner changes much with every step, so scores of one step ago are better than those of two.
        self._loader = SelectingLoader(super_batches, self._selector, take=self._take, prefetch=1)

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self._loader):
            if step == self._snapshot_step and self._loader.last is not None:
                self.snapshot = self._judge(step, batch["candidates"], self._loader.last.indices)
            yield batch

    def _judge(self, step: int, rows: NDArray[np.int64], picked: NDArray[np.int64]) -> Snapshot | None:
        """Has every candidate scored by an independent selection that keeps them all."""
        batch = self._setting.pairs.at(rows)
        with Selector(self._address, policy="independent", sub_batch_size=len(rows)) as judge:
            verdict = judge.select(batch["images"], batch["texts"])
        if verdict.scores is None:
            return None
        scores = np.empty(len(rows), np.float32)
        scores[verdict.indices] = verdict.scores
        return Snapshot(step, rows, picked, scores)

    def _take(self, super_batch: Any, indices: NDArray[np.int64]) -> Any:
        picked = {key: values[indices] for key, values in super_batch.items()}
        return picked | {"candidates": super_batch["ids"]}

    @property
    def scored(self) -> int:
        return self._selector.statistics.candidates

    @property
    def versions(self) -> int:
        return len(self._selector.statistics.weights_versions)

    @property
    def fallbacks(self) -> int:
        return self._selector.statistics.fallbacks.total()

    @property
    def wait_seconds(self) -> float:
        return self._loader.wait_seconds
