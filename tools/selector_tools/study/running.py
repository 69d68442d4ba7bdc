"""Runs one cell by one seed, through a real sidecar, Redis-protocol server and client, and says what came of it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selector_tools.export.bundle_writer import export_learner
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.cells import Cell
from selector_tools.study.costs import measured
from selector_tools.study.fed import train_fed
from selector_tools.study.feeds import Service, Source
from selector_tools.study.flexi_vit import FULL, PATCH_8, FlexiSigLip, seen_as
from selector_tools.study.model import SmallSigLip, exportable
from selector_tools.study.references import Reference, ready
from selector_tools.study.streams import Stream, stream
from selector_tools.study.task import Task, prepare
from selector_tools.study.variance import PairVariance

AUGMENT = Augmentation(shift=3)


def make_ready(cell: Cell, seed: int, folder: Path, device: str = "cpu") -> None:
    """Makes what the cell's run needs and others need, too, so that it is in `folder`."""
    torch.set_num_threads(1)
    task = prepare(cell.pool, cell.noise, seed, folder)
    reference = _reference(task, stream(cell.stream, task.data.pool, seed), cell, seed, folder, device)
    if cell.how.selects:
        _exported(task, cell, seed, _learner(task, cell, seed, reference), _scorer(task, cell, seed), folder)


def run(
    cell: Cell, seed: int, folder: Path, on_step: Callable[[int], None] = lambda _: None, device: str = "cpu"
) -> dict[str, Any]:
    """Trains the cell's learner on `device`, where the sidecar computes, too, and returns the run as JSON takes it.
    What can be used again is kept in `folder`."""
    torch.set_num_threads(1)  # one core trains while the other one selects
    task = prepare(cell.pool, cell.noise, seed, folder)
    read = stream(cell.stream, task.data.pool, seed)
    reference = _reference(task, read, cell, seed, folder, device)
    source = Source(task.pairs, read, cell.batch, cell.super_batch, seed)
    learner = _learner(task, cell, seed, reference)
    scorer = _scorer(task, cell, seed)
    flops = measured(learner, scorer)
    bundle = _exported(task, cell, seed, learner, scorer, folder) if cell.how.selects else None
    learner.to(device)
    pairs = None
    if cell.how.joint:
        teacher = reference.given(task.model(seed)).to(device)
        pairs = PairVariance(learner, teacher, source, cell.how.settings, cell.steps)

    def judge(model: SmallSigLip) -> float:
        with seen_as(model, FULL):
            return task.validation(model)

    def service(redis: str) -> Service:
        assert bundle is not None
        return Service(bundle, reference.bundle, reference.cache, redis, folder / "sidecars.log", device)

    told, batches = train_fed(
        cell,
        source,
        learner,
        service,
        own=reference.own,
        curated=task.curated,
        mixed_up=cell.resolution == "flexi",
        flops=flops,
        judge=judge,
        augment=AUGMENT,
        checkpoint=folder / "runs" / f"{cell.key(seed)}.checkpoint",
        on_selection=pairs or (lambda *_: None),
        on_step=on_step,
    )
    rows = [source.stream.rows[ids[ids < len(source.stream)]] for ids in batches]
    with seen_as(learner, FULL):
        test, apart = task.test(learner), task.test.apart(learner, task.known)
    return told | {
        "test": test,
        "test_apart": apart,
        "reference": asdict(reference.figures),
        "concepts": float(np.mean([len(np.unique(task.concepts[batch])) for batch in rows])),
        "mislabelled": float(task.mislabelled[np.concatenate(rows)].mean()),
        "pair_variance": pairs.shares if pairs else [],
    }


def _reference(task: Task, read: Stream, cell: Cell, seed: int, folder: Path, device: str) -> Reference:
    """Returns the cell's reference, which is trained and has embedded the stream by then."""
    # Other captions, and other entries, have other embeddings.
    name = f"{'hot' if cell.stream == 'hot' else 'pool'}-{cell.noise:g}"
    return ready(cell.reference, task, cell.pool, read, name, seed, folder, device)


def _learner(task: Task, cell: Cell, seed: int, reference: Reference) -> SmallSigLip:
    """Returns the learner as it begins."""
    learner = task.model(seed, cell.resolution)
    return reference.given(learner) if cell.how.warm else learner


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
