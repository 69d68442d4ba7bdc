"""How many times sooner than a baseline an arm is as good, what that saves, and how two arms differ.

A curve is that of the validation families, averaged over seeds; where it first reaches a target is interpolated. A
baseline's last value comes after its learning rate has decayed, an arm's on the way does not: ratios err to the low
side. Whatever is compared is compared by the same seeds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from selector_tools.study.cells import Cell
from selector_tools.study.summary import COSTS, TIMELESS, Curve, Run, Summary

# An accuracy that is to be reached: the best baseline's last one, half of it, or what the best baseline of four times
# as many steps ends at.
Target = Literal["final", "half", "four"]
# The baselines that count: all of them, or those that draw at random and do not ask the reference.
Rivals = Literal["any", "uniform"]
RIVALS: tuple[Rivals, ...] = ("any", "uniform")
TARGETS: tuple[Target, ...] = ("final", "half", "four")


def reached(curve: Curve, target: float) -> float | None:
    """Returns the step at which a curve first reaches `target`, or None. Before its first point it starts at 0."""
    before, low = 0.0, 0.0
    for step, value in curve:
        if value >= target:
            return step if value <= low else before + (step - before) * max(0.0, target - low) / (value - low)
        before, low = step, value
    return None


@dataclass(frozen=True)
class Against:
    """An arm against a baseline, both by the seeds that they have in common: `ratios` are how many times less the arm
    needs to reach the target, by kind of cost; empty if it never does, and without seconds if the two were run on
    different machines. `steps` is where it does."""

    arm: Summary
    baseline: Summary
    target: float
    steps: float | None
    ratios: Mapping[str, float]

    def ratio(self, what: str) -> float | None:
        """Returns the ratio of a kind of cost; None for never, and NaN where it cannot be told."""
        return self.ratios.get(what, math.nan) if self.ratios else None


def against(arm: Summary, baseline: Summary, target: float) -> Against:
    """Compares where both first reach `target`. A cost is spread evenly over an arm's steps."""
    ours, theirs = reached(arm.curve, target), reached(baseline.curve, target)
    if ours is None or theirs is None:
        return Against(arm, baseline, target, ours, {})
    shares = theirs / baseline.cell.steps, max(ours, 1.0) / arm.cell.steps
    kinds = COSTS if len(arm.machines | baseline.machines) == 1 else TIMELESS
    ratios = {what: baseline.cost(what) * shares[0] / (arm.cost(what) * shares[1]) for what in kinds}
    return Against(arm, baseline, target, ours, ratios)


def comparable(cell: Cell, baseline: Cell) -> bool:
    """Whether a baseline trains the same learner on the same pool, with as many wrong captions, for as long, and asks
    no better reference. It does not have to read the stream in the same order: shuffling is open to everybody. How
    candidates are scored is no matter for it, but whether the learner is a transformer."""
    same = ["pool", "noise", "steps", "batch"] + ["reference"] * baseline.how.asks_reference
    return (
        all(getattr(cell, name) == getattr(baseline, name) for name in same)
        and (cell.stream == "hot") == (baseline.stream == "hot")
        and (cell.resolution is None) == (baseline.resolution is None)
    )


def best_baseline(cell: Cell, found: Mapping[Cell, Summary], rivals: Rivals = "any") -> Summary | None:
    """Returns the baseline that ends highest of those that are comparable; arms that start from the reference's weights
    are compared with baselines that do so, and no others are."""
    some = [
        one
        for other, one in found.items()
        if not other.how.selects
        and comparable(cell, other)
        and other.how.warm == cell.how.warm
        and not (rivals == "uniform" and other.how.asks_reference)
    ]
    return max(some, key=lambda one: one.final, default=None)


def sooner(
    arm: Summary, found: Mapping[Cell, Summary], target: Target = "final", rivals: Rivals = "any"
) -> Against | None:
    """Compares an arm with its best baseline by the seeds that both were run by; None if there is no such baseline."""
    steps = arm.cell.steps * (4 if target == "four" else 1)
    baseline = best_baseline(replace(arm.cell, steps=steps), found, rivals)
    common = set(arm.seeds) & set(baseline.seeds if baseline else ())
    if baseline is None or not common:
        return None
    baseline = baseline.by(common)
    return against(arm.by(common), baseline, baseline.final * (0.5 if target == "half" else 1.0))


def seed_by_seed(compared: Against, what: str) -> list[float | None]:
    """Returns the ratio of each seed alone, for a target that is the baseline's last accuracy by that seed; None where
    it is never reached."""
    ratios = []
    for seed in compared.arm.seeds:
        arm, baseline = compared.arm.by([seed]), compared.baseline.by([seed])
        ratios.append(against(arm, baseline, baseline.final).ratios.get(what))
    return ratios


ONE_OFF = {"cpu": ("train_cpu_seconds", "embed_cpu_seconds"), "flops": ("train_flops", "embed_flops")}


def breaks_even(compared: Against, what: Literal["cpu", "flops"]) -> float:
    """Returns after how many of the baseline's steps what the arm saves has paid for the reference and its embeddings,
    if it saves the same share at every horizon; infinite if it saves none, and NaN if it cannot be told. What the
    baseline needs, too, is no cost."""
    arm, baseline = compared.arm, compared.baseline
    needed = arm.cell.how.asks_reference and not baseline.cell.how.asks_reference
    once = sum(map(arm.reference, ONE_OFF[what])) if needed else 0.0
    ratio = compared.ratio(what)
    if ratio is None or math.isnan(ratio):
        return math.inf if ratio is None else math.nan
    saved = baseline.cost(what) / baseline.cell.steps * (1 - 1 / ratio)
    return once / saved if saved > 0 else math.inf


@dataclass(frozen=True)
class Difference:
    """What `first` has more than `second`, seed by seed."""

    first: Summary
    second: Summary
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.values)

    @property
    def error(self) -> float | None:
        """The standard error of the mean, or None for one seed."""
        return stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else None

    @property
    def clear(self) -> bool | None:
        """Whether it is more than twice its error; None for one seed."""
        return None if self.error is None else abs(self.mean) > 2 * self.error


def difference(first: Summary, second: Summary, value: Callable[[Run], float | None]) -> Difference | None:
    """Compares two arms run by run, each with the other's run by the same seed; None if there is nothing to compare."""
    others = {run["seed"]: value(run) for run in second.runs}
    pairs = [(value(run), others.get(run["seed"])) for run in first.runs]
    values = tuple(one - other for one, other in pairs if one is not None and other is not None)
    return Difference(first, second, values) if values else None


def gained(arm: Summary, found: Mapping[Cell, Summary]) -> Difference | None:
    """Returns by how much an arm ends above its best baseline in the test; None if there is no such baseline."""
    compared = sooner(arm, found)
    return None if compared is None else difference(compared.arm, compared.baseline, lambda run: run["test"])
