"""The arms of the demo: the same trainer on the same pool, fed in different ways."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from selector_client import Selection, Selector

from selector_tools.demo.results import Arm
from selector_tools.demo.rules import RULES
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.feeds import AtRandom, Selected, Service, Source
from selector_tools.study.model import SmallSigLip
from selector_tools.study.training import train
from selector_tools.study.zero_shot import ZeroShot


@dataclass(frozen=True)
class Setting:
    """What all arms share. `concepts`, int64 [n], numbers each row's concept, and `mislabelled`, bool [n], marks the
    rows whose caption is wrong."""

    source: Source
    service: Service
    concepts: NDArray[np.int64]
    mislabelled: NDArray[np.bool_]
    evaluate: ZeroShot
    vocabulary: int
    learning_rate: float
    augment: Augmentation
    publish_every: int

    def fresh_model(self) -> SmallSigLip:
        """Returns a model with the same weights at every call; the learner's bundle has them, too."""
        torch.manual_seed(self.source.seed)
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
    rule, source, snapshots = RULES[kind], setting.source, []

    def look(step: int, rows: NDArray[np.int64], selection: Selection) -> None:
        if step == steps // 3 and isinstance(feed, Selected):
            snapshots.extend(_judged(step, rows, selection.indices, feed.address, source))

    with ExitStack() as stack:
        feed: Selected | AtRandom = AtRandom(rule, source)
        if rule.selects:
            every = setting.publish_every
            feed = Selected(
                rule,
                source,
                setting.service,
                stack,
                run=f"demo-{kind}",
                steps=steps,
                publish_every=every,
                on_selection=look,
            )
        run = train(
            setting.fresh_model(),
            iter(feed),
            steps,
            learning_rate=setting.learning_rate,
            augment=setting.augment,
            seed=source.seed,
            evaluate=setting.evaluate,
            publisher=feed.publisher,
            on_step=on_step,
        )
        arm = Arm(
            name=rule.label,
            about=rule.about,
            steps=steps,
            trained=steps * source.batch,
            scored=feed.counts.shown,
            accuracy=run.accuracy,
            finals=[run.accuracy[-1][1]],
            train_seconds=run.seconds,
            wait_seconds=feed.wait_seconds,
            versions=feed.versions,
            fallbacks=feed.fallbacks,
            concepts=float(np.mean([len(np.unique(setting.concepts[rows])) for rows in run.rows])),
            mislabelled=float(setting.mislabelled[np.concatenate(run.rows)].mean()),
        )
    return arm, snapshots[0] if snapshots else None


def _judged(
    step: int, rows: NDArray[np.int64], picked: NDArray[np.int64], address: str, source: Source
) -> list[Snapshot]:
    """Has every candidate scored by an independent selection that keeps them all. Returns nothing if none was."""
    batch = source.at(rows)
    with Selector(address, policy="independent", sub_batch_size=len(rows)) as judge:
        verdict = judge.select(batch["images"], batch["texts"])
    if verdict.scores is None:
        return []
    scores = np.empty(len(rows), np.float32)
    scores[verdict.indices] = verdict.scores
    return [Snapshot(step, rows, picked, scores)]
