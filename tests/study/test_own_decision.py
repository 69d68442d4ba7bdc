"""What is said of an arm: a gain, none, or a loss, by made-up curves."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
from selector_tools.study.cells import Cell
from selector_tools.study.own.decision import Decision, decide, quantile
from selector_tools.study.own.planning import LOOKS, Pace, steps_within
from selector_tools.study.summary import Summary

STEPS = 600
SEEDS = 3


def summary(rule: str, speeds: Sequence[float], ends: Sequence[float], tests: Sequence[float], cpu: float) -> Summary:
    """An arm whose curve rises to its end by a straight line, `speeds` times as fast as over all steps."""
    cell = Cell("own", rule, steps=STEPS)
    runs = []
    for seed, (speed, end, test) in enumerate(zip(speeds, ends, tests, strict=True)):
        curve = [(step, end * min(1.0, speed * step / STEPS)) for step in range(25, STEPS + 1, 25)]
        costs = {"trainer_cpu_seconds": cpu / 2, "sidecar_cpu_seconds": cpu / 2, "train_seconds": cpu}
        counted = {"flops": 1e9, "flops_by_paper": 1e9}
        runs.append({"cell": asdict(cell), "seed": seed, "curve": curve, "test": test} | costs | counted)
    return Summary(cell, runs)


def baseline(end: float = 0.3) -> Summary:
    return summary("shuffled", [1.0] * SEEDS, [end] * SEEDS, [end] * SEEDS, cpu=10.0)


def decision(speeds: Sequence[float], end: float, tests: Sequence[float], cpu: float = 10.0) -> Decision:
    return decide(baseline(), [summary("jest", speeds, [end] * SEEDS, tests, cpu)])


def test_an_arm_that_is_twice_as_fast_in_every_seed_gains_by_so_much() -> None:
    found = decision([1.9, 2.0, 2.1], 0.3, [0.29, 0.3, 0.31], cpu=30.0)
    best = found.best
    assert best.verdict == "gain"
    assert best.ratios["steps"].value == pytest.approx(2.0, rel=0.03)  # looks are 25 steps apart
    assert best.ratios["steps"].error == pytest.approx(0.06, abs=0.03)
    assert best.steps == pytest.approx(325)  # of the mean curve, whose slowest seed is later
    assert best.ratios["cpu"].value == pytest.approx(2 / 3, rel=0.03)  # each step costs three times as much
    assert best.ratios["flops"].value == pytest.approx(2.0, rel=0.03)
    assert best.accuracy.value == pytest.approx(0.0)


def test_one_that_ends_higher_gains_although_it_is_no_sooner() -> None:
    found = decision([0.9, 1.0, 1.1], 0.3, [0.34, 0.35, 0.36])
    assert found.best.verdict == "gain"
    assert found.best.accuracy.value == pytest.approx(0.05)
    assert found.best.accuracy.error == pytest.approx(0.01 / math.sqrt(3))


def test_what_chance_explains_is_no_gain() -> None:
    found = decision([0.8, 1.4, 2.2], 0.3, [0.27, 0.3, 0.36])
    assert found.best.verdict == "none"
    assert found.best.ratios["steps"].value > 1.3
    # The same would be a gain if each seed said so.
    assert decision([1.35, 1.4, 1.45], 0.3, [0.3, 0.31, 0.32]).best.verdict == "gain"


def test_what_equals_the_baseline_is_no_gain_though_there_is_no_spread() -> None:
    found = decision([1.0] * SEEDS, 0.3, [0.3] * SEEDS)
    assert found.best.verdict == "none"
    assert found.best.ratios["steps"].value == pytest.approx(1.0)


def test_one_that_ends_lower_is_worse_and_its_ratio_says_when_the_baseline_was_as_good() -> None:
    found = decision([1.0, 1.0, 1.0], 0.15, [0.14, 0.15, 0.16])
    best = found.best
    assert best.verdict == "worse"
    assert best.steps is None
    assert best.ratios["steps"].value == pytest.approx(0.5)  # the baseline had 0.15 after half of its steps


def test_sooner_but_lower_is_mixed() -> None:
    assert decision([1.9, 2.0, 2.1], 0.3, [0.24, 0.25, 0.26]).best.verdict == "mixed"


def test_the_best_arm_is_told_of_and_a_gain_comes_before_a_larger_ratio_by_chance() -> None:
    arms = [
        summary("jest", [0.5, 2.0, 8.0], [0.3] * SEEDS, [0.3] * SEEDS, 10.0),
        summary("mixed_prefilter", [2.0, 2.0, 2.0], [0.3] * SEEDS, [0.40, 0.41, 0.42], 10.0),
        summary("independent", [0.4, 0.5, 0.6], [0.3] * SEEDS, [0.3] * SEEDS, 10.0),
    ]
    found = decide(baseline(), arms)
    assert [one.arm.rule for one in found.arms] == ["jest", "mixed_prefilter", "independent"]
    assert found.best.arm.rule == "mixed_prefilter"
    # The spread is that of all arms together, so an arm whose seeds agree by chance has no smaller error.
    errors = {one.ratios["steps"].error / one.ratios["steps"].value for one in found.arms}
    assert max(errors) == pytest.approx(min(errors))
    assert max(errors) > 0.3


def test_noise_alone_is_called_a_gain_by_few_studies() -> None:
    rng, gains = np.random.default_rng(0), 0
    for _ in range(300):
        some = [
            summary(rule, rng.lognormal(0, 0.3, SEEDS), [0.3] * SEEDS, 0.3 + rng.normal(0, 0.02, SEEDS), 10.0)
            for rule in ("jest", "mixed_prefilter", "independent")
        ]
        gains += decide(baseline(), some).best.verdict in ("gain", "mixed")
    assert gains / 300 < 0.1


@pytest.mark.parametrize(
    ("probability", "freedom", "known"),
    [(0.975, 3, 3.182), (0.975, 6, 2.447), (0.9916667, 3, 4.857), (0.9916667, 6, 3.287), (0.95, 12, 1.782)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, known: float) -> None:
    assert quantile(probability, freedom) == pytest.approx(known, rel=0.006)


def test_the_bound_is_at_least_two_errors_and_higher_for_fewer_seeds() -> None:
    bounds = []
    for seeds in (2, 3, 500):
        arms = [summary(rule, [1.0] * seeds, [0.3] * seeds, [0.3] * seeds, 1.0) for rule in ("shuffled", "jest")]
        bounds.append(decide(arms[0], arms[1:]).bound)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 2.0


def test_a_budget_holds_what_the_paces_say() -> None:
    run = {"curve": [0] * 8, "wall_seconds": 12.0, "train_seconds": 4.0, "cell": {"steps": 8}}
    pace = Pace.of(run, elapsed=15.0)
    assert pace == Pace(beside=3.0, step=0.5, look=1.0)
    assert pace.seconds(100) == 3.0 + 50.0 + LOOKS
    two = 2 * pace.seconds(100)
    assert steps_within(two, [pace, pace], most=600) == 100
    assert steps_within(two, [pace, pace], most=60) == 60
    assert steps_within(5.0, [pace, pace], most=600) == 0
