"""`selector bench inspect`, too small to say anything of cost: the page is open in its turns and shows pictures."""

import json
import os
import time

import pytest
from selector_tools import cli
from selector_tools.bench import inspect_runs
from selector_tools.bench.measuring import ratio_with_interval

pytestmark = pytest.mark.usefixtures("forked_benchmarks")


@pytest.mark.timeout(120)
def test_a_page_that_is_open_is_measured_against_none(capsys):
    assert (
        cli.main(["bench", "inspect", "--candidates", "40", "--pairs", "2", "--rounds", "2", "--soak", "4", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert {name: len(spent) for name, spent in result["cpu_seconds"].items()} == {"off": 2, "on": 2}
    assert all(seconds > 0.001 for spent in result["cpu_seconds"].values() for seconds in spent)
    low, high = result["selection_time_ratio_interval"]
    assert low <= result["selection_time_ratio"] <= high
    assert result["page"]["super_batches_with_pictures"] >= 1
    assert result["page"]["pictures"] >= 8
    soak = result["soak"]
    assert [number for number, _ in soak["resident_bytes"]] == [1, 2, 3, 4]
    assert soak["rss_growth"] == soak["resident_bytes"][3][1] / soak["resident_bytes"][2][1] - 1
    assert {"device", "versions", "load_average"} <= result.keys()


def test_a_ratio_counts_what_only_some_runs_pay_for():
    lower = [1.0] * 100
    upper = [1.0] * 75 + [1.4] * 25
    ratio, (low, high) = ratio_with_interval(upper, lower)
    assert ratio == pytest.approx(1.1)
    # The standard error of a mean of 100 such values is 0.0173.
    assert (low, high) == pytest.approx((1.1 - 1.96 * 0.0173, 1.1 + 1.96 * 0.0173), abs=0.006)


def test_what_a_process_does_by_itself_is_in_the_interval():
    """Two rounds of a hundred pairs, in one of which all runs take a tenth longer."""
    lower, upper = [1.0] * 200, [1.0] * 100 + [1.1] * 100
    _, (low, high) = ratio_with_interval(upper, lower, 100)
    assert (low, high) == pytest.approx((1.0, 1.1))
    _, (low, high) = ratio_with_interval(upper, lower)
    assert high - low < 0.02


def test_the_processor_time_of_a_process_is_told_finely():
    before = inspect_runs._processor_seconds(os.getpid())
    until = time.process_time() + 0.003
    while time.process_time() < until:
        pass
    assert 0.003 <= inspect_runs._processor_seconds(os.getpid()) - before < 0.5


@pytest.mark.parametrize(
    ("flag", "value"), [("--candidates", "10"), ("--pairs", "1"), ("--soak", "3"), ("--rounds", "7")]
)
def test_mistakes_print_one_line_and_exit_2(flag, value, capsys):
    assert cli.main(["bench", "inspect", flag, value]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert flag in err
