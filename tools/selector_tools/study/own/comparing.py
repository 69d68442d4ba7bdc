"""Compares ways to feed a user's model on a user's pool, within a budget of time."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selector_server.errors import SetupError
from selector_tools.datasets.pairs import Pairs
from selector_tools.export.bundle_writer import export_learner
from selector_tools.export.torch_model import TorchModel
from selector_tools.progress import bar
from selector_tools.reference.training import Recipe
from selector_tools.reference.validation import LEAST
from selector_tools.study.cells import Cell
from selector_tools.study.comparing import best_baseline
from selector_tools.study.own import reference as references
from selector_tools.study.own.decision import Decision, decide
from selector_tools.study.own.models import Models
from selector_tools.study.own.planning import LEAST_STEPS, REFERENCE_SHARE, TRIED, Pace, steps_within
from selector_tools.study.own.pool import OwnPool, Reader, fewer, split
from selector_tools.study.own.reference import OwnReference
from selector_tools.study.own.retrieval import Retrieval
from selector_tools.study.own.running import Machine, Setting, run
from selector_tools.study.summary import Summary, summaries

BASELINES = ("buffer", "shuffled", "filtered")
# By the model's loss: two criteria go together for the sigmoid loss only, so there is no mixed rule for the other.
SELECTING = {
    "sigmoid": ("independent", "mixed_prefilter", "jest"),
    "softmax": ("independent", "jest_prefilter", "jest"),
}
DEAREST = "jest"  # It scores every candidate by the learner, and draws jointly.
LEAST_SEEDS = 2  # One has no error.
REFERENCE_STEPS = 2000
REFERENCE_SEEDS = 1000  # No learner begins as its reference did.


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. `first` is the first seed; `folder` is where all files go."""

    pool: str
    reference: Path | None
    curated: str | None
    cell: Cell
    seeds: int
    first: int
    budget_seconds: float
    machine: Machine
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What came of it. `pairs` says how many there were for what; `seeds` may be fewer than were asked for."""

    asked: Asked
    steps: int
    seeds: int
    pairs: dict[str, int]
    validation: Retrieval
    test: Retrieval
    references: list[OwnReference]
    runs: list[dict[str, Any]]
    arms: list[Summary]
    decision: Decision
    seconds: float


def compare(asked: Asked, models: Models, read: Reader) -> Outcome:
    """Runs all arms by all seeds. Raises SelectorError."""
    began = time.perf_counter()

    def left() -> float:
        return asked.budget_seconds - (time.perf_counter() - began)

    model = models(asked.first)
    if asked.reference is not None:
        references.check(asked.reference, model)
    whole, curated = _pairs(asked, read)
    validation, test = Retrieval(whole.validation, "validation"), Retrieval(whole.test, "test")
    asked.folder.mkdir(parents=True)
    setting = Setting(asked.first, whole.train, validation, test, asked.machine, asked.folder / "sidecars.log")
    uniform = _pace(replace(asked.cell, rule=BASELINES[0]), setting, model)
    # No arm is faster than this one, so that more steps cannot be had, nor more pairs be seen.
    most, _ = _plan(asked, left(), uniform, uniform)
    setting = replace(setting, train=fewer(whole.train, max(most, TRIED + 1) * asked.cell.super_batch, asked.first))
    steps = int(REFERENCE_SHARE * left() / (asked.seeds * uniform.step))
    steps = max(min(LEAST_STEPS, asked.cell.steps), min(REFERENCE_STEPS, steps))
    settings = []
    for number in range(asked.seeds):
        one = replace(setting, seed=asked.first + number)
        settings.append(_ready(asked, one, models, curated, steps))
    dearest = _pace(replace(asked.cell, rule=DEAREST), settings[0], model)
    steps, seeds = _plan(asked, left(), uniform, dearest)
    runs, before = [], left()
    rules = (*BASELINES, *SELECTING[model.loss])
    with bar("runs", len(rules) * seeds) as advance:
        for number, one in enumerate(settings[:seeds]):
            if number >= LEAST_SEEDS and left() < (before - left()) / number:
                seeds = number  # The machine has become slower, and another seed would not fit.
                break
            for rule in rules:
                cell = replace(asked.cell, rule=rule, steps=steps)
                runs.append(run(cell, one, models(one.seed)))
                advance(1, f"runs, {cell.how.label}")
    counted = {
        "train": len(setting.train.pixels),
        "in_the_pool": len(whole.train.pixels),
        "validation": len(validation),
        "test": len(test),
        "reference": 0 if curated is None else len(curated.pixels),
    }
    arms, decision = _decided(runs)
    made = [one.reference for one in settings[:seeds] if one.reference is not None]
    seconds = time.perf_counter() - began
    return Outcome(asked, steps, seeds, counted, validation, test, made, runs, arms, decision, seconds)


def _pairs(asked: Asked, read: Reader) -> tuple[OwnPool, Pairs | None]:
    """Reads the pool, and what references are to be trained on, if they are."""
    alone = asked.reference is None and asked.curated is None
    pool = split(read(asked.pool, "--pool"), asked.pool, asked.cell.super_batch, asked.first, aside=alone)
    if asked.curated is None:
        return pool, pool.aside
    curated = read(asked.curated, "--curated")
    if (few := len(curated.pixels)) < LEAST:
        raise SetupError("--curated", asked.curated, f"holds {few} usable pairs; a reference needs at least {LEAST}")
    return pool, curated


def _decided(runs: list[dict[str, Any]]) -> tuple[list[Summary], Decision]:
    found = summaries(runs)
    selecting = [one for cell, one in found.items() if cell.how.selects]
    baseline = best_baseline(selecting[0].cell, found)
    assert baseline is not None
    return list(found.values()), decide(baseline, selecting)


def _pace(cell: Cell, setting: Setting, model: TorchModel) -> Pace:
    began = time.perf_counter()
    tried = run(replace(cell, steps=TRIED), setting, model)
    return Pace.of(tried, time.perf_counter() - began)


def _ready(asked: Asked, setting: Setting, models: Models, curated: Pairs | None, steps: int) -> Setting:
    """Makes the seed's reference and the bundle of its learner."""
    home, machine = asked.folder / f"seed-{setting.seed}", asked.machine
    trained, bundle = (0, 0.0), asked.reference
    if bundle is None:
        assert curated is not None
        bundle, cell = home / "reference", asked.cell
        batch = min(cell.batch, len(curated.pixels))
        seed = setting.seed + REFERENCE_SEEDS
        recipe = Recipe(steps, batch, cell.learning_rate, seed=seed, device=machine.device)
        trained = references.fitted(models(seed), curated, setting.validation.pairs, recipe, bundle)
    made = references.ready(bundle, home, setting.train, setting.test, machine.device, machine.threads, trained)
    export_learner(models(setting.seed), home / "learner")
    return replace(setting, reference=made, bundle=home / "learner")


def _plan(asked: Asked, seconds: float, uniform: Pace, dearest: Pace) -> tuple[int, int]:
    """Returns the steps and the seeds that fit into the time left. Raises SetupError if nothing that says something
    does."""
    each = [uniform] * len(BASELINES) + [dearest] * len(SELECTING["sigmoid"])
    least = min(LEAST_STEPS, asked.cell.steps)
    for seeds in dict.fromkeys((asked.seeds, LEAST_SEEDS)):
        steps = steps_within(seconds, each * seeds, asked.cell.steps)
        if steps >= least:
            return steps, seeds
    spent = asked.budget_seconds - seconds
    needed = (spent + LEAST_SEEDS * sum(pace.seconds(least) for pace in each)) / 60
    limit = (
        f"{LEAST_SEEDS} seeds of {least} steps need about {needed:.1f} minutes, {spent / 60:.1f} of them to begin with"
    )
    raise SetupError("--budget-minutes", f"{asked.budget_seconds / 60:g}", limit)
