"""The arms of the demo: the same trainer on the same pool, fed in different ways."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from selector_client import Access

from selector_tools.demo.results import Arm, Inspected
from selector_tools.demo.rules import RULES
from selector_tools.inspector.remote_source import RemoteSource
from selector_tools.inspector.snapshot import told_by
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


def run_arm(kind: str, steps: int, setting: Setting, on_step: Callable[[int], None]) -> tuple[Arm, Inspected | None]:
    """Trains one arm from scratch, and returns what its sidecar told the inspector at the end (None where no sidecar
    picks)."""
    rule, source, inspected = RULES[kind], setting.source, None
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
        if isinstance(feed, Selected):
            with closing(RemoteSource(feed.address, Access())) as sidecar:
                inspected = Inspected(rule.label, told_by(sidecar))
    return arm, inspected
