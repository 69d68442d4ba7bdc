"""Runs one cell by one seed, through a real sidecar, Redis-protocol server and client, and says what came of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selector_tools.export.bundle_writer import export_learner
from selector_tools.processes import redis_server
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.cells import Cell
from selector_tools.study.checkpoint import Checkpoint
from selector_tools.study.costs import cpu_seconds, measured
from selector_tools.study.feeds import AtRandom, Selected, Service, Source
from selector_tools.study.flexi_vit import FULL, PATCH_8, FlexiSigLip, seen_as
from selector_tools.study.model import SmallSigLip, exportable
from selector_tools.study.references import Reference, ready
from selector_tools.study.streams import stream
from selector_tools.study.task import Task, prepare
from selector_tools.study.training import train

AUGMENT = Augmentation(shift=3)
LOOKS = 24  # So often is a learner judged on its way.


def make_ready(cell: Cell, seed: int, folder: Path) -> None:
    """Makes what the cell's run needs and others need, too, so that it is in `folder`."""
    torch.set_num_threads(1)
    reference = reference_of(cell, seed, folder)
    if cell.how.selects:
        task = prepare(cell.pool, cell.noise, seed, folder)
        _exported(task, cell, seed, _learner(task, cell, seed, reference), _scorer(task, cell, seed), folder)


def reference_of(cell: Cell, seed: int, folder: Path) -> Reference:
    """Returns the cell's reference, which is trained and has embedded the stream by then."""
    task = prepare(cell.pool, cell.noise, seed, folder)
    read = stream(cell.stream, task.data.pool, seed)
    # Other captions, and other entries, have other embeddings.
    name = f"{'hot' if cell.stream == 'hot' else 'pool'}-{cell.noise:g}"
    return ready(cell.reference, task, cell.pool, read, name, seed, folder)


def run(cell: Cell, seed: int, folder: Path, on_step: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Trains the cell's learner and returns the run as JSON takes it. What can be used again is kept in `folder`."""
    torch.set_num_threads(1)  # one core trains while the other one selects
    task, reference = prepare(cell.pool, cell.noise, seed, folder), reference_of(cell, seed, folder)
    source = Source(task.pairs, stream(cell.stream, task.data.pool, seed), cell.batch, cell.super_batch, seed)
    learner = _learner(task, cell, seed, reference)
    scorer = _scorer(task, cell, seed)
    flops = measured(learner, scorer)

    def judge(model: SmallSigLip) -> float:
        with seen_as(model, FULL):
            return task.validation(model)

    with ExitStack() as stack:
        if cell.how.selects:
            service = Service(
                _exported(task, cell, seed, learner, scorer, folder),
                reference.bundle,
                reference.cache,
                stack.enter_context(redis_server()),
                folder / "sidecars.log",
            )
            name = f"study-{cell.key(seed)}"
            feed: Selected | AtRandom = Selected(
                cell.how, source, service, stack, run=name, steps=cell.steps, publish_every=cell.publish_every
            )
        else:
            feed = AtRandom(cell.how, source, reference.own, task.curated)
        checkpoint = Checkpoint(folder / "runs" / f"{cell.key(seed)}.checkpoint", feed, cell.publish_every)
        checkpoint.path.parent.mkdir(exist_ok=True)
        batches = _mixed_up(iter(feed), seed) if cell.resolution == "flexi" else iter(feed)
        began, busy = time.perf_counter(), 0.0 if feed.pid is None else cpu_seconds(feed.pid)
        done = train(
            learner,
            batches,
            cell.steps,
            learning_rate=cell.learning_rate,
            augment=AUGMENT,
            seed=seed,
            evaluate=judge,
            evaluate_every=max(1, cell.steps // LOOKS),
            publisher=feed.publisher,
            checkpoint=checkpoint,
            on_step=on_step,
        )
        wall = time.perf_counter() - began
        served = 0.0 if feed.pid is None else cpu_seconds(feed.pid) - busy
    rows = [source.stream.rows[ids[ids < len(source.stream)]] for ids in done.rows]
    with seen_as(learner, FULL):
        test, apart = task.test(learner), task.test.apart(learner, task.known)
    return {
        "cell": asdict(cell),
        "seed": seed,
        "curve": done.accuracy,
        "validation": done.accuracy[-1][1],
        "test": test,
        "test_apart": apart,
        "reference": asdict(reference.figures),
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
        "concepts": float(np.mean([len(np.unique(task.concepts[batch])) for batch in rows])),
        "mislabelled": float(task.mislabelled[np.concatenate(rows)].mean()),
    }


def _learner(task: Task, cell: Cell, seed: int, reference: Reference) -> SmallSigLip:
    """Returns the learner as it begins."""
    learner = task.model(seed, cell.resolution)
    return reference.warm(learner) if cell.how.warm else learner


def _scorer(task: Task, cell: Cell, seed: int) -> SmallSigLip | None:
    """Returns the form of the learner that scores, if it is another one."""
    if cell.resolution not in ("low", "flexi"):
        return None
    scorer = task.model(seed, cell.resolution)
    assert isinstance(scorer, FlexiSigLip)
    scorer.seen = (PATCH_8,)
    return scorer


def _exported(
    task: Task, cell: Cell, seed: int, learner: SmallSigLip, scorer: SmallSigLip | None, folder: Path
) -> Path:
    """Returns the bundle of the learner as it begins, in the form that scores; it is written unless it is there."""
    warm = f"-{cell.reference}" if cell.how.warm else ""
    bundle = folder / "learners" / f"{cell.pool}-{cell.resolution or 'conv'}{warm}-{seed}"
    if not bundle.exists():
        model = learner if scorer is None else scorer
        export_learner(exportable("learner", model, task.tokenizer.get_vocab_size(), task.words), bundle)
    return bundle


def _mixed_up(batches: Iterator[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the batches in random order within each, as halves of them are seen at different resolutions."""
    for batch in batches:
        order = np.random.default_rng([seed, 6, *batch["ids"][:4]]).permutation(len(batch["ids"]))
        yield {key: values[order] for key, values in batch.items()}
