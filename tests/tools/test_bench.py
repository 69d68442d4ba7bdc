"""The benchmark commands, at sizes that say nothing."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from selector_tools import cli
from selector_tools.bench import chunks_study as study
from selector_tools.bench.baselines import gibbs, matrix, pseudo_code
from selector_tools.bench.neighbours import Neighbours
from selector_tools.bench.synthetic import candidates

from selector_server.sampling import Criterion, Draw, PairScores, Plan, chunk_sizes
from selector_server.sampling.policies import Joint

pytestmark = pytest.mark.usefixtures("forked_benchmarks")
SMALL = ["--super-batch", "300", "--dim", "16", "--chunks", "4", "--repeats", "2", "--literal-repeats", "1"]


def test_sampler_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "sampler", *SMALL, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["same_picks"] is True
    assert result["setting"]["picks"] == 60
    contenders = ("sampler", "other pairs", "products", "pseudo-code")
    assert [len(result["runs"][name]) for name in contenders] == [2, 2, 2, 1]
    ratios = [a / b for a, b in zip(result["runs"]["other pairs"], result["runs"]["sampler"], strict=True)]
    assert result["other_pairs_ratio"] == pytest.approx(sum(ratios) / 2)
    assert result["setting"]["pair_criterion"] == "easy-reference"
    assert result["speedup"] == pytest.approx(result["literal_seconds"] / result["seconds"])
    assert result["over_matmul"] == pytest.approx(result["seconds"] / result["matmul_seconds"])
    assert (result["busy"], result["slowdown"]) == (0, None)
    assert {"peak_mib", "literal_peak_mib", "peak_is", "device", "threads", "versions", "load_average"} <= set(result)


def test_sampler_beside_a_busy_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "sampler", *SMALL, "--threads", "2", "--busy", "1"]) == 0
    assert "beside 1 busy processes it takes" in capsys.readouterr().out


def test_neighbours_are_busy_only_while_something_is_measured() -> None:
    def ticks(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    with Neighbours(2) as neighbours:
        pids = [process.pid for process in neighbours._processes]
        assert len({os.getsid(pid) for pid in (os.getpid(), *pids)}) == 3

        def until_all_ran() -> float:
            before, until = [ticks(pid) for pid in pids], time.monotonic() + 60
            while not all(ticks(pid) > then for pid, then in zip(pids, before, strict=True)):
                assert time.monotonic() < until
                time.sleep(0.05)
            return 7.0

        assert neighbours.beside(until_all_ran) == 7.0
        until = time.monotonic() + 60  # a process that has no core stops when it gets one
        while any(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T" for pid in pids):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("criterion", ["easy-reference", "hard-learner", "none", "learnability"])
def test_sampler_compares_pairs_by_another_criterion(
    criterion: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    pick = Joint.pick
    monkeypatch.setattr(Joint, "pick", lambda self, scores, plan: (drawn.append(scores), pick(self, scores, plan))[1])
    assert cli.main(["bench", "sampler", *SMALL, "--pair-criterion", criterion]) == 0
    assert f"pairs by {criterion} take" in capsys.readouterr().out
    other = {scores.pair_criterion for scores in drawn} - {None}
    assert other == {Criterion[criterion.upper().replace("-", "_")]}
    assert {scores.criterion for scores in drawn} == {Criterion.LEARNABILITY}


@pytest.mark.parametrize("seed", range(4))
def test_the_literal_twin_picks_the_same(seed: int) -> None:
    scores, plan = candidates(500, 32, seed), Plan(chunk_sizes(101, 7), 100.0, Draw.SAMPLE, seed)
    assert scores.learner is not None
    assert scores.reference is not None
    theirs = pseudo_code(scores.learner, scores.reference, plan)
    assert torch.equal(theirs, Joint().pick(scores, plan).indices)


def test_the_literal_twins_scores_are_the_matrix() -> None:
    scores = candidates(40, 8, 0)
    assert scores.learner is not None
    assert scores.reference is not None
    learner, reference = (
        [
            [
                np.logaddexp(0, (-1 if i == j else 1) * float(m.image[i] @ m.text[j] * m.scale + m.bias))
                for j in range(40)
            ]
            for i in range(40)
        ]
        for m in (scores.learner, scores.reference)
    )
    np.testing.assert_allclose(matrix(scores).numpy(), np.subtract(learner, reference), atol=1e-5)


def test_gibbs_keeps_a_valid_sub_batch_and_its_score() -> None:
    scores = candidates(200, 16, 0)
    start = torch.arange(40)
    sweeps = list(gibbs(matrix(scores), start, 100.0, 0))
    for members, total in sweeps:
        assert len(np.unique(members)) == 40
        assert total == pytest.approx(scores.total(torch.from_numpy(members)), abs=1e-3)
    assert sweeps[-1][1] > sweeps[0][1] + 1


def test_gibbs_has_the_exact_law() -> None:
    """Of single members: with b = 1 a step is a draw with p proportional to exp(gain * score)."""
    scores, gain = candidates(5, 4, 0), 1.0
    pairs = matrix(scores)
    last = [list(gibbs(pairs, torch.tensor([0]), gain, seed))[1][0][0] for seed in range(4000)]
    expected = torch.softmax(gain * pairs.diagonal(), dim=0).numpy()
    np.testing.assert_allclose(np.bincount(last, minlength=5) / 4000, expected, atol=0.035)


def test_chunk_study_runs_from_independent_to_gibbs() -> None:
    trials = [study.trial(candidates(400, 16, seed), 80, 100.0, seed) for seed in range(2)]
    result = study.summary(trials)
    assert list(result["learnability_ratio"]) == ["1", "2", "4", "8", "16", "32"]
    assert result["learnability_ratio"]["1"] == 0
    assert result["learnability_ratio"]["32"] > result["learnability_ratio"]["2"] > 0
    assert result["gibbs_ratio_by_sweep"][-1] == 1
    assert result["standard_error"]["1"] == 0
    assert all(steps % 80 == 0 and steps > 0 for steps in result["gibbs_steps"])


def test_a_trial_measures_picks_as_the_sampler_does() -> None:
    scores: PairScores = candidates(400, 16, 0)
    trial = study.trial(scores, 80, 100.0, 0)
    picks = Joint().pick(scores, Plan(chunk_sizes(80, 8), 100.0, Draw.SAMPLE, 0))
    assert trial.chunks[8] == pytest.approx(picks.total / 80, abs=1e-4)
    assert trial.gibbs[0] == pytest.approx(trial.chunks[1], abs=1e-4)


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        (["sampler", "--filter-ratio", "1"], "--filter-ratio"),
        (["sampler", "--super-batch", "20", "--chunks", "16"], "--chunks"),
        (["sampler", "--literal-repeats", "4", "--repeats", "2"], "--literal-repeats"),
        (["sampler", "--device", "abacus"], "--device"),
        (["sampler", "--pair-criterion", "luck"], "--pair-criterion"),
        (["sampler", "--busy", "-1"], "--busy"),
        (["sampler", "--dim", "many"], "--dim"),
        (["chunks", "--super-batch", "99"], "--super-batch"),
        (["chunks", "--seeds", "1"], "--seeds"),
    ],
)
def test_mistakes_print_one_line_and_exit_2(
    command: list[str], mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = cli.main(["bench", *command])
    except SystemExit as exit_:  # argparse's own mistakes
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert mistake in err
