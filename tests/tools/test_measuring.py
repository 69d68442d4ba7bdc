"""How benchmarks measure: turns, medians and percentiles."""

import os

import pytest
from selector_tools.bench.measuring import in_turns, mean_and_error, medians, paired_ratio, seconds_of
from selector_tools.bench.memory import resident_bytes


def test_contenders_take_turns_and_slow_ones_drop_out():
    order, seen = [], []

    def contender(name, seconds):
        def run():
            order.append(name)
            return seconds + len(order)

        return run

    found = in_turns(
        {"fast": contender("fast", 0.0), "slow": contender("slow", 100.0)},
        3,
        warm_up=1,
        fewer={"slow": 1},
        on_run=lambda *run: seen.append(run),
    )
    assert order == ["fast", "slow", "fast", "slow", "fast", "fast"]
    assert found == {"fast": [3.0, 5.0, 6.0], "slow": [104.0]}
    assert seen[0] == ("fast", 0, 1.0)
    assert len(seen) == len(order)


def test_a_ratio_is_the_median_over_pairs():
    assert paired_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 4.0]) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_medians_and_errors():
    assert medians({"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0]}) == {"a": 2.0, "b": 1.5}
    assert mean_and_error([1.0, 3.0]) == pytest.approx((2.0, 1.0))


def test_a_call_is_timed():
    assert 0 <= seconds_of(lambda: None) < 1


def test_memory_of_a_process_is_at_most_its_peak():
    assert 1 << 20 < resident_bytes(os.getpid()) <= 1.01 * resident_bytes("self", "VmHWM")
