"""`selector bench faults`, at a size that says nothing of speed: what is planted is left out, and nothing else."""

import json

import pytest
from selector_tools import cli
from selector_tools.bench.faulty_shards import FAULTS, write_shards

pytestmark = pytest.mark.usefixtures("forked_benchmarks")


@pytest.mark.timeout(400)  # the sidecar starts six times
def test_bad_samples_and_a_killed_sidecar_cost_no_batch_its_size(capsys):
    assert cli.main(["bench", "faults", "--super-batch", "100", "--steps", "9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["uniform_share"].values()) == {0.0}
    assert result["excluded_share"] == pytest.approx({"0": 0.0, "0.002": 2 / 900, "0.01": 0.01, "0.05": 0.05})
    assert result["as_planted"] is True
    assert result["sub_batches_all_of_size_b"] is True
    assert result["exceptions"] == []
    assert set(result["runs"]["0.05"]["excluded"]) == set(FAULTS)
    killed = result["killed"]
    assert 0 < killed["uniform_share"] < 1
    assert 0 < killed["excluded_share"] <= 0.05
    assert killed["selected_at_the_end"] is True
    assert {"device", "versions", "load_average"} <= result.keys()


def test_shards_hold_what_was_planted(tmp_path):
    shards = write_shards(tmp_path / "shards", 0.2, 50, 12)
    batches = list(shards.super_batches())
    assert [len(batch["ids"]) for batch in batches] == [50] * 12
    assert shards.planted.total() == 120
    ids = [name for batch in batches for name in batch["ids"]]
    assert sum(len(batch["ids"]) - len(set(batch["ids"])) for batch in batches) == shards.planted["repeated"]
    assert len(ids) - len(set(ids)) == shards.planted["repeated"], "none is repeated in another super-batch"
    assert sum(text is None for batch in batches for text in batch["texts"]) == shards.planted["missing"]
    images = [image for batch in batches for image in batch["images"]]
    assert sum(image.startswith(b"<html>") for image in images) == shards.planted["format"]
    assert sum(image.startswith(b"\x89PNG") for image in images) == shards.planted["too_large"]


@pytest.mark.parametrize(("flag", "value"), [("--steps", "2"), ("--super-batch", "10")])
def test_mistakes_print_one_line_and_exit_2(flag, value, capsys):
    assert cli.main(["bench", "faults", flag, value]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert flag in err
