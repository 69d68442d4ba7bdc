"""What the arms show: how many times sooner, how much better, each with its error, and whether that is a gain.

An arm is compared with the best baseline, seed by seed, where both first have what the lower one of them ends with: a
ratio above 1 says that the arm was sooner, one below 1 that the baseline was. Of a few seeds the spread is hardly
known, so it is taken from all arms together; the bound for a gain allows for that, and for the best arm being told.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

from selector_tools.study.cells import Cell
from selector_tools.study.comparing import against
from selector_tools.study.summary import COSTS, Summary

Verdict = Literal["gain", "mixed", "none", "worse"]
LEAST_BOUND = 2.0  # A gain is more than so many times its error, however many seeds there are.
DOUBT = 0.05  # So often would a gain be found by any arm where there is none.


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Compared:
    """An arm against the best baseline: `ratios` are how many times less the arm costs for the same, by kind of cost;
    `accuracy` is how much more it has on the test set at the end, and `steps` where its mean curve reaches the
    baseline's end, None if it does not."""

    arm: Cell
    ratios: Mapping[str, Estimate]
    accuracy: Estimate
    steps: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Decision:
    """All arms, the one to tell of first, and how many times its error a gain must be."""

    baseline: Summary
    bound: float
    arms: Sequence[Compared]

    @property
    def best(self) -> Compared:
        """The arm to tell of."""
        order: tuple[Verdict, ...] = ("gain", "mixed", "none", "worse")
        return min(self.arms, key=lambda one: (order.index(one.verdict), -one.ratios["steps"].value))


def decide(baseline: Summary, arms: Sequence[Summary]) -> Decision:
    """Compares arms with a baseline. All have the same seeds, two or more, in the same order."""
    seeds = len(baseline.runs)
    bound = max(LEAST_BOUND, quantile(1 - DOUBT / (2 * len(arms)), len(arms) * (seeds - 1)))
    logs = {what: [_log_ratios(arm, baseline, what) for arm in arms] for what in COSTS}
    gained = [[_test(mine) - _test(theirs) for mine, theirs in _by_seed(arm, baseline)] for arm in arms]
    errors = {what: _pooled_error(some) for what, some in logs.items()}
    error = _pooled_error(gained)
    found = []
    for number, arm in enumerate(arms):
        means = {what: fmean(some[number]) for what, some in logs.items()}
        ratios = {what: Estimate(math.exp(mean), math.exp(mean) * errors[what]) for what, mean in means.items()}
        accuracy = Estimate(fmean(gained[number]), error)
        verdict = _verdict(Estimate(means["steps"], errors["steps"]), accuracy, bound)
        steps = against(arm, baseline, baseline.final).steps
        found.append(Compared(arm.cell, ratios, accuracy, steps, verdict))
    return Decision(baseline, bound, found)


def _verdict(log_speed: Estimate, accuracy: Estimate, bound: float) -> Verdict:
    clear = [one.value for one in (log_speed, accuracy) if abs(one.value) > bound * one.error]
    better, worse = any(value > 0 for value in clear), any(value < 0 for value in clear)
    if better and worse:
        return "mixed"
    return "gain" if better else "worse" if worse else "none"


def _by_seed(arm: Summary, baseline: Summary) -> list[tuple[Summary, Summary]]:
    """Returns both as if there were one seed, for each."""
    return [
        (Summary(arm.cell, [mine]), Summary(baseline.cell, [theirs]))
        for mine, theirs in zip(arm.runs, baseline.runs, strict=True)
    ]


def _log_ratios(arm: Summary, baseline: Summary, what: str) -> list[float]:
    return [
        math.log(against(mine, theirs, min(mine.final, theirs.final)).ratios[what])
        for mine, theirs in _by_seed(arm, baseline)
    ]


def _test(one: Summary) -> float:
    return one.mean("test")


def _pooled_error(by_arm: Sequence[Sequence[float]]) -> float:
    """Returns the standard error of an arm's mean, by the spread over seeds that all arms have together."""
    squares = sum((value - fmean(values)) ** 2 for values in by_arm for value in values)
    freedom = sum(len(values) - 1 for values in by_arm)
    return math.sqrt(squares / freedom / len(by_arm[0]))


def quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t, by its expansion about the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms))
