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

from selector_tools.datasets.pairs import Pairs
from selector_tools.demo.results import Arm
from selector_tools.demo.rules import RULES, Rule
from selector_tools.processes import sidecar
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.model import SmallSigLip
from selector_tools.study.streams import draws, runs
from selector_tools.study.training import train
from selector_tools.study.zero_shot import ZeroShot

# The weight of scores in a draw; at 1, the probabilities are in the proportion of exp(-loss).
GAIN = 1.0
# A selection that is not answered becomes a uniform batch, which is for jobs that must go on; a demo may wait.
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Setting:
    """What all arms share. `order`, int64 [n], holds the pool's rows as shards would; `concepts`, int64 [n], numbers
    each row's concept, and `mislabelled`, bool [n], marks the rows whose caption is wrong."""

    pairs: Pairs
    order: NDArray[np.int64]
    concepts: NDArray[np.int64]
    mislabelled: NDArray[np.bool_]
    evaluate: ZeroShot
    vocabulary: int
    batch: int
    filter_ratio: float
    learning_rate: float
    augment: Augmentation
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

    def super_batches(self) -> Iterator[NDArray[np.int64]]:
        """The rows of one super-batch after the other, the same for all arms."""
        return runs(self.order, self.super_batch, self.seed)

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


def run_arm(kind: str, steps: int, setting: Setting, on_step: Callable[[int], None]) -> tuple[Arm, Snapshot | None]:
    """Trains one arm from scratch, and takes a snapshot a third of the way in (None where no sidecar picks)."""
    rule = RULES[kind]
    with ExitStack() as stack:
        feed = _Selected(kind, setting, steps, stack) if rule.settings else _Random(rule, setting)
        run = train(
            setting.fresh_model(),
            iter(feed),
            steps,
            learning_rate=setting.learning_rate,
            augment=setting.augment,
            seed=setting.seed,
            evaluate=setting.evaluate,
            publisher=feed.publisher,
            on_step=on_step,
        )
        arm = Arm(
            name=rule.label,
            about=rule.about,
            steps=steps,
            trained=steps * setting.batch,
            scored=feed.scored,
            accuracy=run.accuracy,
            finals=[run.accuracy[-1][1]],
            train_seconds=run.seconds,
            wait_seconds=feed.wait_seconds,
            versions=feed.versions,
            fallbacks=feed.fallbacks,
            concepts=float(np.mean([len(np.unique(setting.concepts[rows])) for rows in run.rows])),
            mislabelled=float(setting.mislabelled[np.concatenate(run.rows)].mean()),
        )
        return arm, feed.snapshot


class _Random:
    """Batches drawn at random, from the selecting arms' super-batches or from the shuffled pool."""

    publisher = None
    snapshot = None
    scored = versions = fallbacks = 0
    wait_seconds = 0.0

    def __init__(self, rule: Rule, setting: Setting) -> None:
        self._rule, self._setting = rule, setting

    def __iter__(self) -> Iterator[Any]:
        s = self._setting
        if self._rule.shuffled:
            return (s.pairs.at(rows) for rows in draws(len(s.order), s.batch, s.seed))
        rng = np.random.default_rng([s.seed, 3])
        return (s.pairs.at(rng.choice(rows, s.batch, replace=False)) for rows in s.super_batches())


class _Selected:
    """Sub-batches that a sidecar of this arm's own picks; it scores with the weights that the arm publishes."""

    def __init__(self, kind: str, setting: Setting, steps: int, stack: ExitStack) -> None:
        self._setting = setting
        self._snapshot_step = steps // 3
        self.snapshot: Snapshot | None = None
        run = f"demo-{kind}"
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
            Selector(
                self._address,
                run=run,
                seed=setting.seed,
                sub_batch_size=setting.batch,
                gain=GAIN,
                # Each selection is scored with the newest weights that were published before it was asked for, however
                # long they take, so that the demo's figures do not depend on the machine's speed.
                max_lag_steps=setting.publish_every,
                when_stale="wait",
                **RULES[kind].settings,
            )
        )
        # Version 0, the bundle's weights, and the first one published must be the same, for either may score first.
        self.publisher = stack.enter_context(
            WeightPublisher(setting.redis, run, every=setting.publish_every, dtype="fp32")
        )
        rows = setting.super_batches()
        super_batches = (setting.pairs.at(next(rows)) for _ in range(steps))
        # The demo's learner changes much with every step, so scores of one step ago are better than those of two.
        self._loader = SelectingLoader(
            super_batches, self._selector, take=self._take, prefetch=1, deadline=DEADLINE_SECONDS
        )

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
