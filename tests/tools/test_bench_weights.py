"""`selector bench weights`, with a model too small to say anything."""

import json

import pytest
from selector_tools import cli

pytestmark = pytest.mark.usefixtures("forked_benchmarks")
TINY = ["--params", "2e5", "--swap-params", "5e4", "--repeats", "1", "--requests", "20", "--json"]


def test_weights_prints_one_json_object(capsys):
    assert cli.main(["bench", "weights", *TINY, "--readers", "1,2", "--soak", "6"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = ("publish_to_serving_seconds", "over_raw", "trainer_blocked_over_memcpy", "p99_during_swap_ratio")
    assert all(result[name] > 0 for name in figures)
    publish = result["publish"]
    assert publish["phase_seconds"].keys() == {"snapshot", "ship", "notice", "fetch", "bind"}
    assert sum(publish["phase_seconds"].values()) == pytest.approx(result["publish_to_serving_seconds"])
    assert publish["payload_bytes"] == pytest.approx(2 * result["setting"]["parameters"], rel=0.1)  # bf16
    assert publish["canary_seconds"] < publish["with_canary_seconds"]
    assert [one["readers"] for one in result["readers"]] == [1, 2]
    assert all(one["gigabytes_per_second"] > 0 and one["redis_cpu_seconds"] >= 0 for one in result["readers"])
    assert result["during_swaps"]["requests"] == {"without": 20, "during": 20}
    assert result["during_swaps"]["swaps_per_second"] > 0
    assert result["soak"]["swaps"] == 6
    assert [swaps for swaps, _ in result["soak"]["resident_bytes"]][0::3] == [3, 6]
    assert {"redis-py", "valkey", "torch"} <= result["versions"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "5"], "--params is 5.0; must be 1e4 to 2e9"),
        (["--params", "nan"], "--params is nan; must be 1e4 to 2e9"),
        (["--repeats", "0"], "--repeats is 0; must be at least 1"),
        (["--soak", "-1"], "--soak is -1; must be 0 or at least 2"),
        (["--readers", "1,x"], "--readers is 1,x; must be numbers from 1 to 64, with commas"),
        (["--readers", ""], "--readers is ; must be numbers"),
    ],
)
def test_mistakes_take_one_line(arguments, message, capsys):
    assert cli.main(["bench", "weights", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"selector bench weights: {message}")
