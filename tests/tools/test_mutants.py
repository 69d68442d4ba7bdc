"""The mutation check, without mutmut: what it draws, what it counts, and that its page is that of its results."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SURVIVOR = {"file": "a/b.py", "function": "C.f", "before": "x + 1", "after": "x - 1"}


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_it_names_exists(mutants):
    for name, place in mutants.PLACES.items():
        assert (ROOT / place / name).is_dir()
    files = set(mutants.WITHOUT)
    for package in mutants.PACKAGES.values():
        files |= {Path(mutants.PLACES[code.split("/")[0]], code) for code in package.code}
        files |= {test.removeprefix("--ignore=") for test in package.tests}
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_a_sample_follows_from_its_seed_and_other_mutants_move_none(mutants):
    names = [f"m{i}" for i in range(100)]
    drawn = mutants.sample(names, 20, seed=0)
    assert len(set(drawn)) == 20
    assert mutants.sample(names[::-1], 20, seed=0) == drawn
    assert mutants.sample(names, 20, seed=1) != drawn
    others = mutants.sample([*names, *(f"n{i}" for i in range(100))], 200, seed=0)
    assert [name for name in others if name in names][:20] == drawn


def test_the_page_counts_and_lists(mutants):
    results = {"1": "killed", "2": "timeout", "3": "survived", "4": "no tests", "5": "unclear", "6": "killed"}
    report = {
        "run": {"date": "2026-01-02", "machine": "two cores", "versions": "Python 3"},
        "packages": {"engine": {"mutants": 30, "results": results, "survivors": {"3": SURVIVOR}}},
        "judged": {},
    }
    text = mutants.page(report)
    assert "| engine | 30 | 6 | 2 | 1 | 1 | 1 | 1 | 75% |" in text
    assert "### a/b.py\n\n- `C.f`: `x + 1` → `x - 1`. **not judged**" in text
    report["judged"][mutants.key(SURVIVOR)] = "Equivalent: x is 0."
    assert "- `C.f`: `x + 1` → `x - 1`. Equivalent: x is 0." in mutants.page(report)


def test_the_committed_page_is_that_of_the_committed_results(mutants):
    report = json.loads(mutants.RESULTS.read_text())
    assert mutants.PAGE.read_text() == mutants.page(report)
    assert report["packages"].keys() == mutants.PACKAGES.keys()


def test_it_runs_only_tests_that_start_no_sidecar():
    """The plugin leaves the first files as they are, and takes from the last what has a sidecar."""
    kept = ("tests/sampling/test_quality.py", "tests/client/test_iteration.py")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "support.in_process", *kept]
    command.append("tests/client/test_bad_links.py")
    env = {"PYTHONPATH": str(ROOT / "tests"), "PATH": "/usr/bin:/bin"}
    output = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100).stdout
    assert all(f"{name}::" in output for name in kept)
    assert "test_bad_links.py::" not in output
