"""The demo's report: what the terminal, the page and results.json tell of given figures."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from selector_tools.demo import page, report
from selector_tools.demo.results import Arm, Inspected, Report, mean_of
from selector_tools.inspector.snapshot import told_by
from support.chromium import chromium  # type: ignore[import-not-found]
from support.made_up_source import MadeUpSource  # type: ignore[import-not-found]

UNIFORM = Arm(
    name="uniform",
    about="Drawn at random.",
    steps=600,
    trained=76_800,
    scored=0,
    accuracy=[(200, 0.02), (400, 0.06), (600, 0.1)],
    finals=[0.1],
    train_seconds=16.4,
    wait_seconds=0.0,
    versions=0,
    fallbacks=0,
    concepts=107.4,
    mislabelled=0.5,
)
JEST = Arm(
    name="JEST",
    about="Picked jointly.",
    steps=600,
    trained=76_800,
    scored=384_000,
    accuracy=[(50, 0.05), (100, 0.15), (600, 0.2)],
    finals=[0.2],
    train_seconds=38.2,
    wait_seconds=3.44,
    versions=61,
    fallbacks=0,
    concepts=99.1,
    mislabelled=0.291,
)
NASTY = "<script>alert('&')</script>"


def made(*arms: Arm) -> Report:
    return Report(
        arms=list(arms or (UNIFORM, JEST)),
        reference_accuracy=0.259,
        pool_mislabelled=0.5,
        stream="Neighbours are alike.",
        inspected=Inspected("JEST", told_by(MadeUpSource())),
        settings={"batch": "128", "noise": "<50 %>"},
        versions={"torch": "2.13.0"},
    )


def printed(given: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(report.table(given))
    return console.export_text()


def parsed(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text("utf-8"))


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report in which everything that can be hostile is."""
    given = made(UNIFORM, replace(JEST, name=f"JEST {NASTY}", about=NASTY))
    given.settings[NASTY] = given.versions[NASTY] = NASTY
    return report.write(given, tmp_path_factory.mktemp("out") / "new" / "folder")


def test_steps_are_interpolated_between_evaluations() -> None:
    assert JEST.steps_to(0.1) == pytest.approx(75)
    assert JEST.steps_to(0.15) == pytest.approx(100)
    assert JEST.steps_to(0.025) == pytest.approx(25)  # before the first evaluation: from nothing at step 0
    assert JEST.steps_to(0.201) is None
    assert UNIFORM.steps_to(UNIFORM.final) == pytest.approx(600)


def test_the_table_holds_every_measure_within_100_columns() -> None:
    text = printed(made())
    assert max(map(len, text.splitlines())) <= 100
    header, rows = text.split("─")[0], text.splitlines()[-3:]
    measures = ("arm", "trained", "scored", "accuracy", "uniform's", "waited", "weights", "concepts", "labelled")
    assert [column for column in measures if column not in header] == []
    assert " ".join(rows[0].split()) == "uniform 76,800 0 10.0 % 600 0.0 s 0 107 50 %"
    assert " ".join(rows[1].split()) == "JEST 76,800 384,000 20.0 % 75 (8.0x) 3.4 s 61 99 29 %"
    assert rows[2].strip() == "The reference alone reaches 25.9 %, more than any arm."


def test_a_pool_of_right_captions_has_no_column_of_mislabelled_ones() -> None:
    assert "labelled" not in printed(replace(made(), pool_mislabelled=0.0))


@pytest.mark.parametrize(
    ("reaches", "sentence"),
    [
        (0.2, "The reference alone reaches 20.0 %, more than any arm."),
        (0.15, "The reference alone reaches 15.0 %, less than JEST."),
        (0.05, "The reference alone reaches 5.0 %, less than uniform, JEST and mixed."),
    ],
)
def test_the_reference_is_compared_with_the_arms(reaches: float, sentence: str) -> None:
    mixed = replace(JEST, name="mixed", accuracy=[(600, 0.14)])
    given = replace(made(UNIFORM, JEST, mixed), reference_accuracy=reaches)
    assert report.reference(given) == sentence


def test_runs_of_several_seeds_are_shown_as_their_mean_and_deviation() -> None:
    other = replace(JEST, accuracy=[(50, 0.15), (100, 0.25), (600, 0.3)], finals=[0.3], wait_seconds=1.44, fallbacks=2)
    mean = mean_of([JEST, other])
    assert [step for step, _ in mean.accuracy] == [50, 100, 600]
    assert [value for _, value in mean.accuracy] == pytest.approx([0.1, 0.2, 0.25])
    assert mean.finals == [0.2, 0.3]
    assert mean.wait_seconds == pytest.approx(2.44)
    assert mean.fallbacks == 2
    assert "25.0 ± 7.1 %" in printed(made(UNIFORM, mean))  # sqrt(2 * 0.05^2)
    assert mean_of([JEST]) == JEST


def test_fallbacks_are_told_only_where_there_were_any() -> None:
    assert "backs" not in printed(made())
    text = printed(made(UNIFORM, replace(JEST, fallbacks=1234)))
    assert "backs" in text
    assert "1,234" in text


def test_figures_stay_whole_where_the_table_is_too_wide() -> None:
    text = printed(made(UNIFORM, replace(JEST, name="a name of an arm that is far too long", fallbacks=3)))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "384,000" in text
    assert "29 %" in text


def test_a_name_in_brackets_is_no_markup() -> None:
    assert "[red]JEST[/]" in printed(made(UNIFORM, replace(JEST, name="[red]JEST[/]")))


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        (
            (UNIFORM, JEST),
            "JEST reached uniform's final accuracy of 10.0 % in 75 steps, 8.0 times fewer than uniform's 600, "
            "and ended at 20.0 %.",
        ),
        (
            # The best arm that selects speaks for all, wherever it stands, and one that does not select never does.
            (
                UNIFORM,
                replace(UNIFORM, name="shuffled", accuracy=[(600, 0.9)]),
                replace(JEST, accuracy=[(9, 0.1)]),
                JEST,
            ),
            "JEST reached uniform's final accuracy of 10.0 % in 75 steps, 8.0 times fewer than uniform's 600, "
            "and ended at 20.0 %.",
        ),
        (
            (UNIFORM, replace(JEST, accuracy=[(600, 0.089)])),
            "JEST did not reach uniform's final accuracy of 10.0 %: it ended at 8.9 %.",
        ),
        (
            (UNIFORM, replace(JEST, accuracy=[(600, 0.05), (800, 0.1)])),
            "JEST reached uniform's final accuracy of 10.0 % in 800 steps, more than uniform's 600, "
            "and ended at 10.0 %.",
        ),
        (
            (UNIFORM, replace(JEST, accuracy=[(580, 0.1)])),
            "JEST reached uniform's final accuracy of 10.0 % in 580 steps, about as many as uniform's 600, "
            "and ended at 10.0 %.",
        ),
        (
            # Uniform was as good before its end: that is what JEST must be compared with.
            (replace(UNIFORM, accuracy=[(200, 0.2), (600, 0.1)]), JEST),
            "JEST reached uniform's final accuracy of 10.0 % in 75 steps, 1.3 times fewer than uniform's 100, "
            "and ended at 20.0 %.",
        ),
        (
            (replace(UNIFORM, accuracy=[(600, 0.0)]), JEST),
            "Uniform learned nothing in 600 steps, so there is nothing to compare with.",
        ),
        ((UNIFORM,), "Uniform reached 10.0 % in 600 steps."),
    ],
)
def test_the_headline_says_what_happened(arms: tuple[Arm, ...], sentence: str) -> None:
    assert report.headline(made(*arms)) == sentence


def test_an_arm_that_never_got_there_says_so_everywhere(tmp_path: Path) -> None:
    given = made(UNIFORM, replace(JEST, accuracy=[(600, 0.05)]))
    assert "never" in printed(given)
    assert "never" in words(parsed(report.write(given, tmp_path)))
    jest = json.loads((tmp_path / "results.json").read_text("utf-8"))["arms"][1]
    assert jest["steps_to_uniform_final"] is jest["times_fewer_steps"] is None


def test_everything_is_written_and_the_page_needs_nothing_else(written: Path) -> None:
    assert written.name == "index.html"
    assert {file.name for file in written.parent.iterdir()} == {"index.html", "accuracy.png", "results.json"}
    with Image.open(written.with_name("accuracy.png")) as plot:
        assert plot.size == (1000, 560)
        assert len(plot.convert("RGB").getcolors(plot.width * plot.height) or ()) > 10
    root = parsed(written)  # raises where tags are not balanced
    sources = [e.get("src") or e.get("srcset") for e in root.iter() if e.tag in ("img", "source")]
    assert len(sources) == 4
    assert all(source and source.startswith("data:image/") for source in sources)
    (frame,) = root.iter("iframe")
    assert (frame.get("src") or "").startswith("data:text/html;")
    assert frame.get("sandbox") == "allow-scripts"
    assert not {"script", "link"} & {element.tag for element in root.iter()}
    assert "@import" not in page.STYLE
    assert "url(" not in page.STYLE
    assert [a.get("href") for a in root.iter("a")] == ["results.json", "accuracy.png"]


def test_the_page_escapes_what_comes_from_data(written: Path) -> None:
    raw = written.read_text("utf-8")
    assert "<script" not in raw
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in raw


def test_the_page_holds_the_tables_figures_and_the_settings(tmp_path: Path) -> None:
    root = parsed(report.write(made(), tmp_path))
    rows = [[words(cell) for cell in row] for row in root.iter("tr")]
    assert rows == [[column.name, *column.cells] for column in report.columns(made())]
    assert words(next(root.iter("h1"))) == report.headline(made())
    assert [words(e) for e in root.iter() if e.tag in ("dt", "dd")] == [
        "uniform",
        "Drawn at random.",
        "JEST",
        "Picked jointly.",
        "batch",
        "128",
        "noise",
        "<50 %>",
        "torch",
        "2.13.0",
    ]
    text = words(root)
    assert "The reference alone reaches 25.9 %, more than any arm." in text
    assert "Neighbours are alike. 50 % of the captions belong to another picture." in text
    assert "at the end of the arm JEST" in text
    assert "Scored for each one trained on: uniform: 0.0; JEST: 5.0." in text
    assert "uniform: 16.4 s; JEST: 38.2 s" in text


def test_a_report_without_selection_has_no_inspector(tmp_path: Path) -> None:
    none = parsed(report.write(replace(made(UNIFORM), inspected=None), tmp_path))
    assert not [*none.iter("iframe"), *(e for e in none.iter("h2") if "picked" in words(e))]


def test_the_inspector_in_the_page_asks_nobody_and_lets_no_caption_act(tmp_path: Path) -> None:
    """The frame's document alone is what a browser shows in the frame; captions, ids and tags in it are hostile."""
    (frame,) = parsed(report.write(made(), tmp_path)).iter("iframe")
    data, _, view = (frame.get("src") or "").partition(";base64,")[2].partition("#")
    kept = tmp_path / "kept.html"
    kept.write_bytes(base64.b64decode(data))
    with chromium() as browser:
        tab = browser.page(f"{kept.as_uri()}#{view}")
        tab.until("document.querySelectorAll('.tile canvas').length > 8")
        tab.js("document.querySelector('.tile').click()")
        tab.until_text("One sample")
        tab.until("document.querySelectorAll('.sample').length")
        for name, words_there in (("scores", "Picks in the order of their draw"), ("slices", "Words of captions")):
            tab.js(f"document.querySelector('nav a[href=\"#{name}\"]').click()")
            tab.until_text(words_there)
        assert tab.errors == []
        assert {url.partition(":")[0] for url in tab.requests if url != kept.as_uri()} <= {"data", "file"}
        assert [url for url in tab.requests if url.startswith("file:")] == [kept.as_uri()]
        assert tab.js("window.hacked") is None


def test_results_are_the_report_without_the_inspector(tmp_path: Path) -> None:
    given = made(UNIFORM, replace(JEST, concepts=np.float64(99.1)))  # as figures come: numbers of numpy
    report.write(given, tmp_path)
    held = json.loads((tmp_path / "results.json").read_text("utf-8"))
    uniform, jest = held["arms"]
    assert jest.pop("final") == 0.2
    assert jest.pop("steps_to_uniform_final") == pytest.approx(75)
    assert jest.pop("times_fewer_steps") == pytest.approx(8)
    assert Arm(**jest | {"accuracy": [tuple(point) for point in jest["accuracy"]]}) == JEST
    assert uniform["steps_to_uniform_final"] == pytest.approx(600)
    assert "inspected" not in held
    for name in ("reference_accuracy", "pool_mislabelled", "stream", "settings", "versions"):
        assert held[name] == getattr(given, name)


def test_the_plot_draws_every_arm_and_names_it() -> None:
    shuffled = replace(UNIFORM, name="shuffled", accuracy=[(600, 0.12)])
    for size in (report.WIDE, report.NARROW):
        figure = report.plot(made(UNIFORM, shuffled, JEST), size, report.LIGHT)
        (axes,) = figure.axes
        lines = {str(line.get_label()): line for line in axes.lines}
        for arm in (UNIFORM, shuffled, JEST):
            drawn = lines[f"{arm.name} {100 * arm.final:.1f} %"]
            assert np.array_equal(drawn.get_xydata(), arm.accuracy)
        styles = [lines[name].get_linestyle() for name in ("uniform 10.0 %", "shuffled 12.0 %", "JEST 20.0 %")]
        assert styles == ["-", ":", "-"]
        assert np.array_equal(lines["reference 25.9 %"].get_xydata(), [(0, 0.259), (1, 0.259)])
        legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        named = [text.get_text() for text in axes.texts] + legends
        assert "JEST is there\nafter 75 steps" in named
        assert {label for label in lines if not label.startswith("_")} <= set(named)
        assert "zero-shot" in axes.get_ylabel()
        assert "%" in axes.get_ylabel()


def test_more_arms_than_colours_are_drawn_all_the_same() -> None:
    arms = [replace(JEST, name=f"arm {i}") for i in range(7)]
    (axes,) = report.plot(made(UNIFORM, *arms), report.WIDE, report.DARK).axes
    assert {f"arm {i} 20.0 %" for i in range(7)} <= {str(line.get_label()) for line in axes.lines}


def test_labels_are_moved_apart_in_their_order() -> None:
    assert report.spread([0.5, 0.1, 0.11], gap=0.1) == pytest.approx([0.5, 0.1, 0.2])
    assert report.spread([0.3, 0.3, 0.3], gap=1) == pytest.approx([0.3, 1.3, 2.3])
    assert report.spread([], gap=1) == []
