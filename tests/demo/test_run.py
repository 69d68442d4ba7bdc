"""The demo from fonts to report, small: its figures are a matter of the seed alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from selector_tools import cli
from selector_tools.datasets import fonts, icons
from selector_tools.demo import rules, run

SMALL = ("codicon", "elusive", "eva", "ion", "lucide", "typicons")
BY_THE_CLOCK = ("train_seconds", "wait_seconds")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of a few small families, whose reference learns next to nothing."""
    data = icons.build([family for family in fonts.FAMILIES if family.name in SMALL], curated_size=200)
    monkeypatch.setattr(icons, "load", lambda progress: data)
    monkeypatch.setattr(run, "REFERENCE_STEPS", 20)


def figures(out: Path, *flags: str) -> dict[str, Any]:
    assert cli.main(["demo", "--out", str(out), *flags]) == 0
    held: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    for arm in held["arms"]:
        for name in BY_THE_CLOCK:
            del arm[name]
    return held


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("small", "forked_benchmarks")
def test_seeds_decide_the_figures(tmp_path: Path) -> None:
    """The learner is published four times on the way, and in each run at another moment by the clock."""
    flags = ("--arms", "uniform,shuffled,jest", "--steps", "33", "--noise", "0.5")
    first = figures(tmp_path / "first", *flags)
    uniform, shuffled, jest = first["arms"]
    assert [arm["name"] for arm in first["arms"]] == ["uniform", "uniform, shuffled", "JEST"]
    assert [arm["scored"] for arm in first["arms"]] == [0, 0, 33 * 640]
    assert all(arm["fallbacks"] == 0 and len(arm["finals"]) == 1 for arm in first["arms"])
    assert jest["versions"] == 5  # the bundle's, and those of steps 0, 10, 20 and 30
    assert shuffled["concepts"] > uniform["concepts"]
    # Accuracies tell to the last digit what the learner was trained on.
    assert figures(tmp_path / "second", *flags) == first


@pytest.mark.parametrize(
    ("flags", "mistake"),
    [
        (
            ("--arms", "uniform,best"),
            "--arms is uniform,best; each once, of uniform, shuffled, independent, jest, mixed",
        ),
        (("--arms", "jest,uniform"), "--arms is jest,uniform; must begin with uniform"),
        (("--seeds", "0"), "--seeds is 0; must be at least 1"),
        (("--noise", "1.5"), "--noise is 1.5; must lie between 0 and 1"),
    ],
)
def test_mistakes_are_told_in_a_line(flags: tuple[str, ...], mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *flags]) == 2
    assert mistake in capsys.readouterr().err


def test_arms_without_settings_draw_at_random_and_others_say_how_to_pick() -> None:
    assert {kind for kind, rule in rules.RULES.items() if not rule.selects} == {"uniform", "shuffled"}
    assert set(rules.DEFAULT) <= set(rules.RULES)
