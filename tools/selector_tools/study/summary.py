"""What the runs of a cell say together: means over seeds, curves, and costs."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from selector_tools.study.cells import Cell

Run = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Summary:
    """All runs of one cell. Shares are 0 to 1; costs are those of one run, in the mean."""

    cell: Cell
    runs: Sequence[Run]

    @property
    def seeds(self) -> list[int]:
        """By which seeds it was run."""
        return [run["seed"] for run in self.runs]

    def by(self, seeds: Collection[int]) -> "Summary":
        """Returns the runs by some of the seeds."""
        return Summary(self.cell, [run for run in self.runs if run["seed"] in seeds])

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

    @property
    def machines(self) -> set[str | None]:
        """On what it was run; None where no run says so."""
        return {run.get("machine") for run in self.runs}

    def mean(self, name: str) -> float:
        """Returns the mean of a number that each run has."""
        return fmean(run[name] for run in self.runs)

    def error(self, name: str) -> float | None:
        """Returns the standard deviation over seeds, or None for one seed."""
        return stdev([run[name] for run in self.runs]) if len(self.runs) > 1 else None

    def apart(self, name: str) -> float:
        """Returns the test's mean accuracy on classes that the reference was shown ("known"), or not ("unknown")."""
        return _mean(run["test_apart"][name] for run in self.runs)

    def reference(self, name: str) -> float:
        """Returns the mean of a number that the references of these runs have: their accuracies and what they cost."""
        return fmean(run["reference"][name] for run in self.runs)

    def reference_apart(self, name: str) -> float:
        """As `apart`, of the references themselves."""
        return _mean(run["reference"]["test_apart"][name] for run in self.runs)

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


def _mean(values: Iterable[float | None]) -> float:
    """Returns the mean of what is there, or NaN if nothing is."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else math.nan


TIMELESS = ("steps", "trained", "flops", "paper_flops")  # These are the same on every machine.
COSTS = (*TIMELESS, "cpu", "wall")


def summaries(runs: Iterable[Run]) -> dict[Cell, Summary]:
    """Groups runs by cell, in the order in which they come."""
    found: dict[Cell, list[Run]] = {}
    for run in runs:
        found.setdefault(Cell.of(run["cell"]), []).append(run)
    return {cell: Summary(cell, some) for cell, some in found.items()}
