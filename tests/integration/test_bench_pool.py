"""`selector bench pool`, too small to say anything of rates: Ray and the loop score, and kills lose nothing."""

import json
from importlib.util import find_spec

import pytest
from selector_tools import cli

pytest.importorskip("ray", reason="needs the extra ray")


@pytest.mark.parametrize(
    ("flag", "value", "limit"),
    [
        ("--image-size", "30", "must be a multiple of 16"),
        ("--shards", "7", "must be at least 8"),
        ("--pairs", "0", "must be at least 1"),
        ("--repeats", "0", "must be at least 1"),
        ("--device", "cuda:1", "must be cpu or cuda"),
    ],
)
def test_mistakes_are_told_in_a_line(flag, value, limit, capsys):
    assert cli.main(["bench", "pool", flag, value]) == 2
    assert capsys.readouterr().err == f"selector bench pool: {flag} is {value}; {limit}\n"


@pytest.mark.timeout(900)
def test_it_measures_the_loop_and_ray_and_what_kills_lose(capsys):
    if find_spec("open_clip") is None:
        pytest.skip("NOT TESTED: open_clip is not installed")
    small = ("--open-clip", "ViT-S-32", "--image-size", "32", "--shards", "8", "--pairs", "2", "--repeats", "1")
    assert cli.main(["bench", "pool", *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lost"], found["twice"], found["shards_made_again"]) == (0, 0, 0)
    assert found["kills"].keys() == {"worker", "driver", "node"}
    assert all(0 < each["shards_before"] < 16 and each["pairs"] == 16 * 32 for each in found["kills"].values())
    assert found["samples_per_second"].keys() == {"loop", "ray_1_worker", "ray_2_workers"}
    assert found["ray_over_loop"] == min(found["ratios"].values()) > 0
    assert found["bytes_of_a_pair"] > 1000
