"""The resolution study: do scores at low resolution rank candidates as those at full resolution do, for a learner that
was trained at full resolution only, and for one that was co-trained (Flexi-JEST)?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import torch

from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes
from selector_server.sampling.policies import Joint
from selector_tools.bench import chunks_study as study
from selector_tools.bench.comparison import compare, overlap
from selector_tools.bench.measuring import mean_and_error
from selector_tools.datasets.dataset import Dataset
from selector_tools.datasets.pairs import Pairs
from selector_tools.study.flexi_vit import DEPTH, FULL, LOW, PATCH_8, WIDTH, FlexiSigLip
from selector_tools.study.model import SmallSigLip
from selector_tools.study.streams import draws
from selector_tools.study.training import train
from selector_tools.study.zero_shot import ZeroShot

# Each learner's batches are split among these forms. As their order is random, so are their halves.
LEARNERS = {"full only": (FULL,), "co-trained": (FULL, PATCH_8)}
BATCH = 128
LEARNING_RATE = 2e-3
CHUNKS, GAIN = 16, 100.0

Batches = Iterator[Mapping[str, Any]]
OnStep = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """`steps` ascend: a learner is measured after each of them, and trained up to the last."""

    steps: tuple[int, ...]
    reference_steps: int
    super_batch: int
    super_batches: int
    picks: int
    seed: int

    @property
    def held(self) -> int:
        """How many candidates are held out of the training."""
        return self.super_batch * self.super_batches

    @property
    def total_steps(self) -> int:
        return self.reference_steps + len(LEARNERS) * self.steps[-1]


@dataclass(frozen=True)
class Task:
    """Candidates that no learner is trained on (`held`), and how the reference sees them."""

    setting: Setting
    held: Pairs
    reference: Embedded
    evaluate: ZeroShot

    def measure(self, learner: FlexiSigLip) -> dict[str, Any]:
        """Compares low forms with the full one, and returns means and standard errors over super-batches."""
        seen, accuracy, seconds, models = learner.seen, {}, {}, {}
        for form in (FULL, *LOW):
            learner.seen = (form,)
            started = perf_counter()
            models[form.name] = study.embedded(learner, self.held, at_once=512)
            seconds[form.name] = perf_counter() - started
            accuracy[form.name] = self.evaluate(learner)
        learner.seen = seen
        trials = [self._trial(number, models) for number in range(self.setting.super_batches)]
        return {
            "zero_shot": accuracy,
            "scoring_seconds": seconds,
            "against_full": {
                name: {key: _mean_and_error([trial[name][key] for trial in trials]) for key in trials[0][name]}
                for name in trials[0]
            },
        }

    def _trial(self, number: int, models: dict[str, Embedded]) -> dict[str, dict[str, float]]:
        size = self.setting.super_batch
        rows = torch.arange(number * size, (number + 1) * size)
        plan = Plan(chunk_sizes(self.setting.picks, CHUNKS), GAIN, Draw.SAMPLE, number)
        reference = self.reference.at(rows)
        scores = {name: PairScores(Criterion.LEARNABILITY, model.at(rows), reference) for name, model in models.items()}
        full = scores.pop(FULL.name)
        again = replace(plan, seed=plan.seed + self.setting.super_batches)
        picks = [Joint().pick(full, one).indices for one in (plan, again)]
        return {
            **{name: compare(full, low, plan) for name, low in scores.items()},
            "reference alone": compare(full, PairScores(Criterion.EASY_REFERENCE, None, reference), plan),
            "other noise": {"overlap": overlap(*picks)},
        }


def run(data: Dataset, setting: Setting, on_step: OnStep) -> dict[str, Any]:
    """Trains the reference and both learners, and measures each learner after some of its steps. `on_step` is called
    after each of `setting.total_steps`."""
    candidates, curated, tokenizer = study.prepare(data, setting.seed)
    vocabulary, cut = tokenizer.get_vocab_size(), len(candidates.pixels) - setting.held
    # The pool is in random order, so its end is a fair sample of it.
    training, held = (
        Pairs(candidates.pixels[rows], candidates.tokens[rows]) for rows in (slice(cut), slice(cut, None))
    )
    torch.manual_seed(setting.seed + 1)
    reference = SmallSigLip(vocabulary)
    batches = _batches(curated, setting.seed)
    train(
        reference,
        batches,
        setting.reference_steps,
        learning_rate=LEARNING_RATE,
        weight_decay=1e-2,
        on_step=lambda _: on_step(),
    )
    task = Task(setting, held, study.embedded(reference, held), ZeroShot(data.evaluation, tokenizer))
    learners = {}
    for name, seen in LEARNERS.items():
        torch.manual_seed(setting.seed)
        learners[name] = _watch(FlexiSigLip(vocabulary, seen), _batches(training, setting.seed), task, on_step)
    return {
        "learners": learners,
        "reference_zero_shot": task.evaluate(reference),
        "random_overlap": setting.picks / setting.super_batch,
        "flops": {form.name: form.flops / FULL.flops for form in (FULL, *LOW)},
        "tokens": {form.name: form.tokens for form in (FULL, *LOW)},
    }


def described(setting: Setting) -> dict[str, Any]:
    """Returns what else a reader must know to judge the figures."""
    return {
        **asdict(setting),
        "chunks": CHUNKS,
        "gain": GAIN,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "data": f"the demo's pool, {study.NOISE:.0%} of its captions shuffled; candidates are held out",
        "learner": f"a vision transformer on {FULL.tokens} patches of {FULL.patch} x {FULL.patch} pixels, "
        f"{WIDTH} wide, {DEPTH} deep; the demo's text tower and loss",
        "reference": "the demo's, trained on its curated set",
    }


def _watch(learner: FlexiSigLip, batches: Batches, task: Task, on_step: OnStep) -> dict[str, Any]:
    """Trains the learner and returns its figures, by step."""
    after: dict[str, Any] = {}

    def look(step: int) -> None:
        if step in task.setting.steps:
            after[str(step)] = task.measure(learner)
        on_step()

    done = train(learner, batches, task.setting.steps[-1], learning_rate=LEARNING_RATE, on_step=look)
    return {"train_seconds": done.seconds, "after": after}


def _batches(pairs: Pairs, seed: int) -> Batches:
    return (pairs.at(rows) for rows in draws(len(pairs.pixels), BATCH, seed))


def _mean_and_error(values: list[float]) -> dict[str, float]:
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error}
