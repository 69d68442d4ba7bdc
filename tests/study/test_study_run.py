"""One cell through the real sidecar and back, small: what a run says of itself."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from selector_tools.datasets import fonts, icons
from selector_tools.study import executing, fed, pools, references, task
from selector_tools.study.cells import Cell
from selector_tools.study.checkpoint import Checkpoint
from selector_tools.study.running import make_ready, run

SMALL = ("codicon", "elusive", "eva", "ion", "lucide", "typicons")
STEPS = 24


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """A pool of a few small families, and a reference that learns next to nothing, which all tests here share."""
    data = icons.build([family for family in fonts.FAMILIES if family.name in SMALL], curated_size=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pools.POOLS, "icons", pools.StudyPool("a few", lambda: data, ("lucide",)))
        patch.setitem(references.RECIPES, "strong", references.Recipe("short", 20, 3))
        for cached in (task.prepare, task._loaded, task._words):
            cached.cache_clear()
        yield tmp_path_factory.mktemp("study")
    for cached in (task.prepare, task._loaded, task._words):
        cached.cache_clear()


def cell(rule: str, **changes: object) -> Cell:
    return replace(Cell("icons", rule, steps=STEPS, batch=32, filter_ratio=0.75, noise=0.5), **changes)


def test_a_baseline_costs_what_it_trains(small: Path) -> None:
    found = run(cell("prefiltered"), 0, small)
    assert found["counts"] == {"trained": STEPS * 32, "shown": 0, "decoded": 0, "scored": 0, "embedded": 0}
    assert found["sidecar_cpu_seconds"] == 0 < found["trainer_cpu_seconds"]
    # Three passes forward are what a pass forward and backward costs, but for the gradient of the pixels.
    assert 0.8 < found["flops"] / found["flops_by_paper"] <= 1
    assert found["curve"][-1] == (STEPS, found["validation"])
    assert found["mislabelled"] < run(cell("buffer"), 0, small)["mislabelled"] + 0.1


def test_a_pool_says_how_large_it_and_its_held_out_parts_are(small: Path) -> None:
    told, made = task.described("icons", small), task.prepare("icons", 0.0, 0, small)
    assert (told["pairs"], told["curated"]) == (len(made.pairs.pixels), 200)
    names = np.array(made.test.names)[made.test._labels.numpy()]
    unknown = int((~np.isin(names, list(made.known))).sum())
    assert told["test"] == {"pictures": len(names), "classes": len(made.test.names), "unknown": unknown}
    assert 0 < unknown < len(names)


@pytest.mark.usefixtures("forked_benchmarks")
def test_a_sidecar_scores_what_the_prefilter_leaves(small: Path) -> None:
    asked = {name: run(cell(name), 0, small) for name in ("mixed", "mixed_prefilter", "easy_reference")}
    every = STEPS * 128
    assert [one["counts"]["shown"] for one in asked.values()] == [every] * 3
    assert [one["counts"]["scored"] for one in asked.values()] == [every, STEPS * 80, 0]
    # The reference had embedded the pool before.
    assert [one["counts"]["embedded"] for one in asked.values()] == [0, 0, 0]
    assert all(one["fallbacks"] == 0 for one in asked.values())
    assert [one["versions"] for one in asked.values()] == [4, 4, 0]  # the bundle's, and those of steps 0, 10 and 20
    assert asked["mixed"]["flops"] > asked["mixed_prefilter"]["flops"] > asked["easy_reference"]["flops"]
    assert all(one["sidecar_cpu_seconds"] > 0 for one in asked.values())


@pytest.mark.usefixtures("forked_benchmarks")
@pytest.mark.parametrize("stream", ["natural", "hot"])
def test_a_seed_decides_what_comes_out(stream: str, small: Path) -> None:
    one, other = (run(cell("jest_prefilter", stream=stream), 1, small) for _ in range(2))
    same = ("curve", "test", "test_apart", "counts", "flops", "concepts", "mislabelled", "versions")
    assert [one[name] for name in same] == [other[name] for name in same]


@pytest.mark.usefixtures("forked_benchmarks")
def test_a_learner_may_start_from_its_reference(small: Path) -> None:
    found = run(cell("jest_warm", steps=1, learning_rate=1e-12), 0, small)
    assert found["validation"] == found["reference"]["validation"]
    assert found["test"] == found["reference"]["test"]


@pytest.mark.usefixtures("forked_benchmarks")
def test_larger_patches_score_a_transformer_at_less(small: Path) -> None:
    asked = (cell("jest", resolution=name, steps=3, publish_every=1) for name in ("full", "low", "flexi"))
    full, low, flexi = (run(one, 0, small) for one in asked)
    assert full["flops_by_paper"] > low["flops_by_paper"] > flexi["flops_by_paper"]
    assert low["versions"] >= 2 <= flexi["versions"]  # trained weights reach the form that scores


class Stopped(Exception):
    """A training is stopped in the middle."""


@pytest.mark.usefixtures("forked_benchmarks")
@pytest.mark.parametrize(
    "one", [cell("mixed_prefilter"), cell("buffer"), cell("jest", resolution="flexi")], ids=lambda one: one.name
)
def test_a_training_that_was_stopped_goes_on_to_the_same_end(
    one: Cell, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(one, 3, small)
    monkeypatch.setattr(fed, "Checkpoint", partial(Checkpoint, seconds=0.0))

    def stop(step: int) -> None:
        if step == 17:
            raise Stopped

    with pytest.raises(Stopped):
        run(one, 3, small, stop)
    steps: list[int] = []
    resumed = run(one, 3, small, steps.append)
    assert steps == list(range(11, STEPS + 1))  # the last checkpoint was that of step 10
    same = ("curve", "test", "test_apart", "counts", "flops", "concepts", "mislabelled")
    assert [resumed[name] for name in same] == [whole[name] for name in same]
    (small / "runs" / f"{one.key(3)}.checkpoint").unlink()


def test_what_is_ready_is_not_made_again(small: Path) -> None:
    make_ready(cell("jest"), 2, small)
    home = small / "references" / "icons-strong-2"
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*") if file.is_file()}
    make_ready(cell("mixed"), 2, small)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    own = np.load(home / "pool-0.5" / "own.npy")
    assert own.dtype == np.float32
    assert (np.abs(own) <= 1.001).all()


def test_what_has_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    jobs = [(cell("buffer"), 0), (cell("buffer"), 1)]
    (tmp_path / "runs").mkdir()
    for job in jobs:
        executing.file_of(job, tmp_path).write_text(json.dumps({"seed": job[1]}))
    told: list[str] = []
    assert executing.execute(jobs, tmp_path, 1, told.append) == [{"seed": 0}, {"seed": 1}]
    assert told == [jobs[0][0].name] * 2


def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    jobs = [(cell("buffer", pool="nowhere"), 0), (cell("buffer", pool="neither"), 0)]
    with pytest.raises(KeyError) as failure:
        executing.execute(jobs, tmp_path, 1)
    assert failure.value.__notes__[0].startswith("while running")
    assert not list((tmp_path / "runs").iterdir())
