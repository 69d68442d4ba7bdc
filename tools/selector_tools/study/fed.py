"""Trains a learner on what a cell's rule feeds it, and counts what that costs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_tools.datasets.pairs import Pairs
from selector_tools.processes import redis_server
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.cells import Cell
from selector_tools.study.checkpoint import Checkpoint
from selector_tools.study.costs import Flops, cpu_seconds
from selector_tools.study.feeds import AtRandom, OnSelection, Selected, Service, Source
from selector_tools.study.training import LearnerT, train

LOOKS = 24  # So often is a learner judged on its way.


def train_fed(
    cell: Cell,
    source: Source,
    learner: LearnerT,
    service: Callable[[str], Service],
    *,
    flops: Flops,
    judge: Callable[[LearnerT], float],
    own: NDArray[np.float32] | None = None,
    curated: Pairs | None = None,
    mixed_up: bool = False,
    augment: Augmentation | None = None,
    checkpoint: Path | None = None,
    on_selection: OnSelection = lambda *_: None,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Any], list[NDArray[np.int64]]]:
    """Trains for the cell's steps. Where a sidecar picks, `service` says what it is started with, given the URL of a
    Redis-protocol server; else `own` and `curated` are those of AtRandom. With `mixed_up`, each batch is in random
    order. It goes on from the file `checkpoint`, if that is there, and writes it. Returns what every run tells, as JSON
    takes it, and the ids of each batch."""
    with ExitStack() as stack:
        if cell.how.selects:
            name = f"study-{cell.key(source.seed)}"
            started = service(stack.enter_context(redis_server()))
            feed: Selected | AtRandom = Selected(
                cell.how,
                source,
                started,
                stack,
                run=name,
                steps=cell.steps,
                publish_every=cell.publish_every,
                on_selection=on_selection,
            )
        else:
            feed = AtRandom(cell.how, source, own, curated)
        kept = None
        if checkpoint is not None:
            checkpoint.parent.mkdir(exist_ok=True)
            kept = Checkpoint(checkpoint, feed, cell.publish_every)
        batches = _mixed_up(iter(feed), source.seed) if mixed_up else iter(feed)
        began, busy = time.perf_counter(), 0.0 if feed.pid is None else cpu_seconds(feed.pid)
        done = train(
            learner,
            batches,
            cell.steps,
            learning_rate=cell.learning_rate,
            augment=augment,
            seed=source.seed,
            evaluate=judge,
            evaluate_every=max(1, cell.steps // LOOKS),
            publisher=feed.publisher,
            checkpoint=kept,
            on_step=on_step,
        )
        wall = time.perf_counter() - began
        served = 0.0 if feed.pid is None else cpu_seconds(feed.pid) - busy
    told = {
        "cell": asdict(cell),
        "seed": source.seed,
        "curve": done.accuracy,
        "validation": done.accuracy[-1][1],
        "counts": asdict(feed.counts),
        "flops": flops.spent(feed.counts, feed.pairs_drawn),
        "flops_by_paper": flops.by_paper(feed.counts),
        "trainer_cpu_seconds": done.cpu_seconds,
        "sidecar_cpu_seconds": served,
        "wall_seconds": wall,
        "train_seconds": done.seconds,
        "wait_seconds": feed.wait_seconds,
        "versions": feed.versions,
        "fallbacks": feed.fallbacks,
    }
    return told, done.rows


def _mixed_up(batches: Iterator[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the batches in random order within each, as halves of them are seen at different resolutions."""
    for batch in batches:
        order = np.random.default_rng([seed, 6, *batch["ids"][:4]]).permutation(len(batch["ids"]))
        yield {key: values[order] for key, values in batch.items()}
