"""The demo from fonts to report, small: its figures are a matter of the seed alone."""

import json
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.request import urlopen

import pytest
from selector_tools import cli
from selector_tools.datasets import fonts, icons
from selector_tools.demo import rules, run
from selector_tools.processes import free_port

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


class Visitor(Thread):
    """Asks for a page again and again until there is one, and until it is told to give up."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.page, self.over = address, "", Event()

    def run(self) -> None:
        while not self.page and not self.over.wait(0.05):
            with suppress(OSError):
                self.page = urlopen(self.address, timeout=5).read().decode()

    def __enter__(self) -> "Visitor":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("small", "forked_benchmarks")
def test_seeds_decide_the_figures_and_the_page_is_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learner is published four times on the way, and in each run at another moment by the clock."""
    flags = ("--arms", "uniform,shuffled,jest", "--steps", "33", "--noise", "0.5")
    first = figures(tmp_path / "first", *flags)
    uniform, shuffled, jest = first["arms"]
    assert [arm["name"] for arm in first["arms"]] == ["uniform", "uniform, shuffled", "JEST"]
    assert [arm["scored"] for arm in first["arms"]] == [0, 0, 33 * 640]
    assert all(arm["fallbacks"] == 0 and len(arm["finals"]) == 1 for arm in first["arms"])
    assert jest["versions"] == 5  # the bundle's, and those of steps 0, 10, 20 and 30
    assert shuffled["concepts"] > uniform["concepts"]
    port = free_port()
    monkeypatch.setattr(run, "free_port", lambda: port)
    with Visitor(f"http://127.0.0.1:{port}/") as visitor:
        # Accuracies tell to the last digit what the learner was trained on.
        assert figures(tmp_path / "second", *flags) == first
    assert visitor.address in capsys.readouterr().out
    assert "<title>" in visitor.page


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
