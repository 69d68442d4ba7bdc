"""What runs say together: means over seeds, and how many times sooner than a baseline an accuracy is reached.

A curve is that of the validation families, averaged over seeds; where it first reaches a target is interpolated. A
baseline's last value comes after its learning rate has decayed, an arm's on the way does not: ratios err to the low
side.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from selector_tools.study.cells import Cell
from selector_tools.study.rules import BASELINES

Run = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Summary:
    """All runs of one cell. Shares are 0 to 1; costs are those of one run, in the mean."""

    cell: Cell
    runs: Sequence[Run]

    @property
    def curve(self) -> Curve:
        """The validation's mean accuracy by step."""
        steps = [step for step, _ in self.runs[0]["curve"]]
        values = zip(*([value for _, value in run["curve"]] for run in self.runs), strict=True)
        return [(step, fmean(some)) for step, some in zip(steps, values, strict=True)]

    @property
    def final(self) -> float:
        """The validation's mean accuracy at the end, which choices and targets go by."""
        return self.curve[-1][1]

    def mean(self, name: str) -> float:
        """Returns the mean of a number that each run has."""
        return fmean(run[name] for run in self.runs)

    def error(self, name: str) -> float | None:
        """Returns the standard deviation over seeds, or None for one seed."""
        return stdev([run[name] for run in self.runs]) if len(self.runs) > 1 else None

    def apart(self, name: str) -> float:
        """Returns the test's mean accuracy on classes that the reference was shown ("known"), or not ("unknown")."""
        found = [run["test_apart"][name] for run in self.runs if run["test_apart"][name] is not None]
        return fmean(found) if found else math.nan

    @property
    def cpu_seconds(self) -> float:
        """Of trainer and sidecar together."""
        return self.mean("trainer_cpu_seconds") + self.mean("sidecar_cpu_seconds")

    def cost(self, what: str) -> float:
        """Returns what a run costs: in "steps", examples "trained" on, "flops", "paper_flops", "cpu" or "wall"
        seconds."""
        match what:
            case "steps":
                return self.cell.steps
            case "trained":
                return self.cell.steps * self.cell.batch
            case "flops":
                return self.mean("flops")
            case "paper_flops":
                return self.mean("flops_by_paper")
            case "cpu":
                return self.cpu_seconds
            case _:
                return self.mean("train_seconds")


COSTS = ("steps", "trained", "flops", "paper_flops", "cpu", "wall")


def summaries(runs: Iterable[Run]) -> dict[Cell, Summary]:
    """Groups runs by cell, in the order in which they come."""
    found: dict[Cell, list[Run]] = {}
    for run in runs:
        found.setdefault(Cell.of(run["cell"]), []).append(run)
    return {cell: Summary(cell, some) for cell, some in found.items()}


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
    """An arm against a baseline: `ratios` are how many times less the arm needs to reach the target, by kind of cost;
    empty if it never does."""

    baseline: Cell
    target: float
    steps: float | None
    ratios: Mapping[str, float]


def against(arm: Summary, baseline: Summary, target: float) -> Against:
    """Compares where both first reach `target`. A cost is spread evenly over an arm's steps."""
    ours, theirs = reached(arm.curve, target), reached(baseline.curve, target)
    if ours is None or theirs is None:
        return Against(baseline.cell, target, ours, {})
    shares = theirs / baseline.cell.steps, max(ours, 1.0) / arm.cell.steps
    ratios = {what: baseline.cost(what) * shares[0] / (arm.cost(what) * shares[1]) for what in COSTS}
    return Against(baseline.cell, target, ours, ratios)


def is_baseline(cell: Cell) -> bool:
    """Whether batches are drawn at random."""
    return cell.rule in BASELINES


def comparable(cell: Cell, other: Cell) -> bool:
    """Whether both train the same learner on the same pool, with as many wrong captions, for as long. A baseline does
    not have to read the stream in the same order: shuffling is open to everybody."""
    same = ("pool", "noise", "steps", "batch", "resolution")
    return all(getattr(cell, name) == getattr(other, name) for name in same) and (cell.stream == "hot") == (
        other.stream == "hot"
    )


def best_baseline(cell: Cell, found: Mapping[Cell, Summary], *, warm: bool = False) -> Summary | None:
    """Returns the baseline that ends highest of those that are comparable. One that starts from the reference's weights
    is compared with arms that do so, and asked for by `warm`."""
    some = [
        one
        for other, one in found.items()
        if is_baseline(other) and comparable(cell, other) and other.how.warm == (warm or cell.how.warm)
    ]
    return max(some, key=lambda one: one.final, default=None)


def breaks_even(arm: Summary, baseline: Summary, ratio: float) -> float:
    """Returns after how many of the baseline's steps what the arm saves in CPU seconds has paid for the reference and
    its embeddings; infinite if it saves none."""
    once = fmean(run["reference"]["train_cpu_seconds"] + run["reference"]["embed_cpu_seconds"] for run in arm.runs)
    saved = baseline.cpu_seconds / baseline.cell.steps * (1 - 1 / ratio)
    return once / saved if saved > 0 else math.inf
