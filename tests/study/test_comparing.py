"""Speed-ups, baselines and differences of made-up runs, against figures that were computed by hand."""

import math
from dataclasses import replace

import pytest
from selector_tools.study.cells import Cell
from selector_tools.study.comparing import (
    against,
    best_baseline,
    breaks_even,
    comparable,
    difference,
    gained,
    reached,
    seed_by_seed,
    sooner,
)
from selector_tools.study.rules import parts, rule
from selector_tools.study.summary import Summary, summaries
from support.study_runs import made_run

ARM, UNIFORM, SHUFFLED = (Cell("icons", name) for name in ("mixed", "uniform", "shuffled"))
SLOW, FAST = ((300, 0.1), (600, 0.2)), ((300, 0.2), (600, 0.4))


def one(cell: Cell, curve=FAST, seeds=(0,), **given) -> Summary:
    return Summary(cell, [made_run(cell, seed, curve, **given) for seed in seeds])


def found(*some: Summary) -> dict[Cell, Summary]:
    return {summary.cell: summary for summary in some}


@pytest.mark.parametrize(
    ("target", "step"),
    [(0.05, 50.0), (0.1, 100.0), (0.2, 150.0), (0.3, 200.0), (0.31, None), (0.0, 100.0)],
)
def test_where_a_curve_first_reaches_a_target_is_interpolated(target, step):
    found_at = reached([(100, 0.1), (200, 0.3), (300, 0.25)], target)
    assert found_at == (pytest.approx(step) if target else pytest.approx(0.0)) if step else found_at is None


def test_a_curve_that_begins_at_nothing_is_no_division_by_zero():
    assert reached([(100, 0.0), (200, 0.2)], 0.1) == pytest.approx(150)
    assert reached([(100, 0.0)], 0.0) == 100


def test_a_summary_is_the_mean_over_seeds_and_its_spread():
    runs = [made_run(ARM, 0, FAST, unknown=0.2), made_run(ARM, 1, SLOW, unknown=None, cpu=(4.0, 2.0))]
    told = summaries(runs)[ARM]
    assert told.curve == [(300, pytest.approx(0.15)), (600, pytest.approx(0.3))]
    assert told.mean("test") == pytest.approx(0.3)
    assert told.error("test") == pytest.approx(0.2 / math.sqrt(2))  # two values, 0.1 from their mean
    assert told.apart("unknown") == pytest.approx(0.2)  # of the seed that has such classes
    assert told.cpu_seconds == pytest.approx(8.0)
    assert told.by([1]).error("test") is None
    assert (told.cost("steps"), told.cost("trained")) == (600, 76800)


def test_costs_are_compared_up_to_where_both_reach_the_target():
    arm = one(ARM, FAST, flops=6e12, cpu=(12.0, 8.0))
    baseline = one(SHUFFLED, SLOW, flops=2e12, cpu=(10.0, 0.0))
    told = against(arm, baseline, baseline.final)
    assert told.steps == pytest.approx(300)  # the arm is there at half its steps, the baseline at its end
    expected = {"steps": 2, "trained": 2, "flops": 2 / 3, "paper_flops": 2 / 3, "cpu": 1.0, "wall": 1.0}
    assert told.ratios == pytest.approx(expected)
    assert against(arm, baseline, 0.5).ratios == {}


def test_seconds_of_two_machines_are_not_compared():
    arm, baseline = one(ARM, FAST), one(SHUFFLED, SLOW)
    elsewhere = Summary(ARM, [run | {"machine": "another"} for run in arm.runs])
    told = against(elsewhere, baseline, baseline.final)
    assert told.ratios == pytest.approx({"steps": 2, "trained": 2, "flops": 2, "paper_flops": 2})
    assert told.ratio("steps") == pytest.approx(2)
    assert math.isnan(told.ratio("cpu"))
    assert math.isnan(breaks_even(told, "cpu"))
    assert against(elsewhere, baseline, 0.5).ratio("cpu") is None


def test_targets_are_the_best_baselines_end_half_of_it_and_that_of_four_times_as_many_steps():
    long = replace(SHUFFLED, steps=2400)
    baselines = (one(UNIFORM, ((600, 0.1),)), one(SHUFFLED, SLOW), one(long, ((1200, 0.2), (2400, 0.3))))
    arm = one(ARM, FAST)
    some = found(arm, *baselines)
    told = {target: sooner(arm, some, target) for target in ("final", "half", "four")}
    assert [told[target].target for target in told] == pytest.approx([0.2, 0.1, 0.3])
    assert [told[target].ratios["steps"] for target in told] == pytest.approx([600 / 300, 300 / 150, 2400 / 450])
    assert sooner(arm, found(arm), "final") is None


def test_arms_and_baselines_are_compared_by_the_seeds_that_both_have():
    arm = one(ARM, FAST, seeds=(1, 2))
    runs = [made_run(SHUFFLED, 0, ((300, 0.8), (600, 0.9))), made_run(SHUFFLED, 1, SLOW), made_run(SHUFFLED, 2, FAST)]
    baseline = Summary(SHUFFLED, runs)
    told = sooner(arm, found(arm, baseline))
    assert (told.arm.seeds, told.baseline.seeds, told.target) == ([1, 2], [1, 2], pytest.approx(0.3))
    assert seed_by_seed(told, "steps") == pytest.approx([2.0, 1.0])
    assert sooner(one(ARM, FAST, seeds=(7,)), found(baseline)) is None
    assert gained(arm, found(baseline)).values == pytest.approx((0.2, 0.0))


def test_a_seed_that_never_reaches_its_target_says_so():
    arm = Summary(ARM, [made_run(ARM, 0, FAST), made_run(ARM, 1, SLOW)])
    told = sooner(arm, found(one(SHUFFLED, SLOW, seeds=(0,)), arm))
    assert seed_by_seed(told, "steps") == pytest.approx([2.0])
    baseline = Summary(SHUFFLED, [made_run(SHUFFLED, 0, SLOW), made_run(SHUFFLED, 1, FAST)])
    assert seed_by_seed(sooner(arm, found(baseline)), "steps") == [pytest.approx(2.0), None]


def test_the_best_baseline_ends_highest_by_the_validation_and_not_by_the_test():
    some = found(one(UNIFORM, SLOW, test=0.9), one(SHUFFLED, FAST, test=0.1), one(ARM, ((600, 0.99),)))
    assert best_baseline(ARM, some).cell == SHUFFLED


def test_baselines_of_hot_streams_are_for_hot_streams_only():
    hot = Cell("icons", "buffer", "hot")
    some = found(one(hot, FAST), one(SHUFFLED, SLOW))
    assert best_baseline(ARM, some).cell == SHUFFLED
    assert best_baseline(replace(ARM, stream="shuffled"), some).cell == SHUFFLED
    assert best_baseline(replace(ARM, stream="hot"), some).cell == hot


def test_warm_starts_are_compared_among_themselves():
    warm, arm = Cell("icons", "warm"), Cell("icons", "mixed_prefilter_warm")
    some = found(one(warm, FAST), one(SHUFFLED, SLOW))
    assert best_baseline(ARM, some).cell == SHUFFLED
    assert best_baseline(arm, some).cell == warm
    assert best_baseline(arm, found(one(SHUFFLED, SLOW))) is None


def test_a_baseline_that_asks_the_reference_must_ask_the_same_one_and_is_no_uniform_one():
    filtered = Cell("icons", "filtered")
    some = found(one(filtered, FAST), one(SHUFFLED, SLOW))
    assert best_baseline(ARM, some).cell == filtered
    assert best_baseline(ARM, some, "uniform").cell == SHUFFLED
    assert best_baseline(replace(ARM, reference="weak"), some).cell == SHUFFLED


@pytest.mark.parametrize(
    "change",
    [{"pool": "other"}, {"noise": 0.5}, {"steps": 2400}, {"batch": 512}, {"resolution": "full"}],
    ids=lambda change: next(iter(change)),
)
def test_what_trains_otherwise_is_no_baseline(change):
    assert not comparable(ARM, replace(SHUFFLED, **change))
    assert comparable(ARM, replace(SHUFFLED, filter_ratio=0.9, publish_every=1, learning_rate=1.0))


def test_however_a_transformers_candidates_are_scored_its_baseline_is_a_transformer():
    arms = [replace(ARM, resolution=form) for form in ("full", "low", "flexi")]
    assert all(comparable(arm, replace(SHUFFLED, resolution="full")) for arm in arms)
    assert not comparable(ARM, replace(SHUFFLED, resolution="full"))


def test_a_reference_pays_after_as_many_steps_as_its_cost_is_worth():
    arm, baseline = one(ARM, FAST, cpu=(5.0, 5.0), flops=1e12), one(SHUFFLED, SLOW, cpu=(12.0, 0.0), flops=2e12)
    told = against(arm, baseline, baseline.final)
    # 12 s for 600 steps, of which 5 / 12 are spent: 7 / 600 s a step are saved; the reference took 30 + 2 s.
    assert told.ratios["cpu"] == pytest.approx(12 / 5)
    assert breaks_even(told, "cpu") == pytest.approx(32 / (7 / 600))
    assert breaks_even(told, "flops") == pytest.approx(9.3e11 / (1.5e12 / 600))


def test_what_saves_nothing_never_pays_and_what_a_baseline_needs_too_costs_nothing():
    dear, baseline = one(ARM, FAST, cpu=(20.0, 20.0)), one(SHUFFLED, SLOW)
    assert breaks_even(against(dear, baseline, baseline.final), "cpu") == math.inf
    assert breaks_even(against(dear, baseline, 0.9), "cpu") == math.inf
    filtered = one(Cell("icons", "filtered"), SLOW)
    assert breaks_even(against(one(ARM, FAST), filtered, filtered.final), "cpu") == 0
    alone = one(Cell("icons", "hard"), FAST)
    assert breaks_even(against(alone, baseline, baseline.final), "cpu") == 0


def test_differences_are_paired_by_seed():
    first = Summary(ARM, [made_run(ARM, seed, test=test) for seed, test in enumerate((0.30, 0.42, 0.36))])
    second = Summary(
        SHUFFLED, [made_run(SHUFFLED, seed, test=test) for seed, test in ((2, 0.34), (0, 0.26), (1, 0.36))]
    )
    told = difference(first, second, lambda run: run["test"])
    assert told.values == pytest.approx((0.04, 0.06, 0.02))
    assert (told.mean, told.error) == (pytest.approx(0.04), pytest.approx(0.02 / math.sqrt(3)))
    assert told.clear is True
    assert difference(first, second.by([0]), lambda run: run["test"]).clear is None
    assert difference(first, second.by([]), lambda run: run["test"]) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prefiltered", ("prefiltered", ())),
        ("joint_easy_reference", ("joint_easy_reference", ())),
        ("easy_reference_dedup", ("easy_reference", ("dedup",))),
        ("mixed_prefilter_warm", ("mixed", ("prefilter", "warm"))),
    ],
)
def test_a_rules_name_is_a_base_and_what_changes_it(name, expected):
    assert parts(name) == expected


@pytest.mark.parametrize(
    ("name", "asks"),
    [(name, False) for name in ("uniform", "curated", "hard")]
    + [(name, True) for name in ("filtered", "prefiltered", "warm", "mixed", "hard_prefilter", "hard_warm")],
)
def test_which_rules_need_a_reference(name, asks):
    assert rule(name).asks_reference is asks


@pytest.mark.parametrize("name", ["nothing", "mixed_nothing", ""])
def test_an_unknown_rule_is_a_key_error(name):
    with pytest.raises(KeyError):
        rule(name)
