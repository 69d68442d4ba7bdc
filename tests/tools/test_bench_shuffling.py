"""`selector bench shuffling`, at sizes that say nothing, and its readers, each of which gives every sample once."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from selector_tools import cli
from selector_tools.bench.shuffled_readers import READERS, Layout, installed
from selector_tools.datasets.pairs import make_tokenizer
from selector_tools.export.bundle_writer import export_reference
from selector_tools.study.model import SmallSigLip, exportable

SHARDS, SIZE = 8, 40
ROWS = np.arange(640)


@pytest.mark.parametrize("reader", READERS)
def test_an_epoch_of_each_reader_has_each_sample_once(tmp_path, reader):
    if not installed(reader):
        pytest.skip(f"NOT TESTED: {reader} is not installed (make test-integration installs it)")
    settings = []
    for one in READERS[reader](Layout(tmp_path, np.array_split(ROWS, SHARDS), SIZE, 3, 60, 0)):
        rows = np.concatenate(list(one.super_batches))
        assert Counter(rows.tolist()) == Counter(ROWS.tolist()), one.setting
        settings.append(one.setting)
    assert len(settings) == len(set(settings)) > 1


@pytest.fixture(scope="module")
def reference(shared_folder):
    """A reference of icons that was never trained."""

    def make(folder):
        words = make_tokenizer(["arrow up", "arrow down"], folder / "words.json")
        torch.manual_seed(0)
        model = SmallSigLip(words.get_vocab_size())
        export_reference(
            exportable("untrained", model, words.get_vocab_size(), folder / "words.json"), folder / "bundle"
        )

    return shared_folder("untrained-icons", make) / "bundle"


def test_it_prints_one_json_object(reference, capsys, monkeypatch):
    only = {name: READERS[name] for name in ("any", "InterleavedShards")}
    monkeypatch.setattr("selector_tools.bench.shuffled_readers.READERS", only)
    small = ["--most", "640", "--shards", "8", "--super-batch", "64", "--at-once", "4", "--buffer", "128"]
    command = ["bench", "shuffling", "--reference", str(reference), *small]
    assert cli.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    runs = {run["shuffle"]: run for run in result["runs"]}
    assert [run["super_batches"] for run in runs.values()] == [10] * 6
    stored, shuffled = runs["none: shards and samples as stored"], runs["SelectingLoader.over: all samples"]
    assert stored["locality"] > 0.01 > abs(shuffled["locality"])
    assert (stored["shards_in_a_super_batch"] < 2, shuffled["shards_in_a_super_batch"]) == (True, 8)
    assert runs["at_once=4, buffer=128"]["shards_in_a_super_batch"] > 3
    assert {"pool_cosine", "setting", "device", "versions"} <= set(result)
    assert cli.main(command) == 0
    assert "at_once=4, buffer=128" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reference", "nowhere"], "--reference is nowhere; must be a folder"),
        (["--shards", "1"], "--shards is 1; must be 2 to 1000"),
        (["--at-once", "65"], "--at-once is 65; must be 1 to --shards"),
        (["--buffer", "639"], "--buffer is 639; must be at least --super-batch"),
        (["--most", "9"], "--most is 9; must be at least --super-batch"),
    ],
)
def test_flags_that_cannot_be_are_refused(tmp_path, capsys, flags, words):
    assert cli.main(["bench", "shuffling", "--reference", str(tmp_path), *flags]) == 2
    assert words in capsys.readouterr().err
