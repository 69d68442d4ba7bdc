"""The page of results: what it must say of made-up runs, and that the committed one follows from the committed runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from selector_tools.study.cells import Cell
from selector_tools.study.results.__main__ import main
from selector_tools.study.results.differences import all_pairs, name_of
from selector_tools.study.results.documents import PATTERN, read, together
from selector_tools.study.results.naming import anchor
from selector_tools.study.results.page import render
from selector_tools.study.results.questions import (
    BATCH,
    DRAW,
    EXPLORE,
    HORIZON,
    QUESTIONS,
    RATIO,
    RESOLUTION,
    STALENESS,
    TEACHER,
    WARM,
    Question,
)
from selector_tools.study.summary import summaries
from support.study_runs import made_document, made_run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SLOW, FAST, SLUGGISH = ((300, 0.1), (600, 0.2)), ((300, 0.2), (600, 0.4)), ((300, 0.05), (600, 0.15))


def study() -> list[dict]:
    """Two seeds: JEST is twice as fast as the best uniform baseline, the easy rule never as good, and no rule as good
    as the baseline that filters."""

    def runs(rule: str, curve, **given) -> list[dict]:
        cell = Cell("icons", rule, **{name: given.pop(name) for name in ("publish_every", "noise") if name in given})
        return [made_run(cell, seed, [(s, v + 0.01 * seed) for s, v in curve], **given) for seed in (0, 1)]

    return [
        *runs("uniform", SLUGGISH),
        *runs("shuffled", SLOW, unknown=0.3),
        *runs("filtered", ((300, 0.4), (600, 0.5)), unknown=0.2),
        *runs("warm", ((300, 0.5), (600, 0.55))),
        *runs("easy_reference", SLUGGISH, cpu=(10.0, 2.0)),
        *runs("independent", SLOW, cpu=(10.0, 2.0)),
        *runs("jest", FAST, cpu=(12.0, 28.0), flops=3e12, unknown=0.1),
        *runs("jest", SLOW, publish_every=100),
    ]


@pytest.fixture
def folder(tmp_path):
    def write(*documents: dict) -> Path:
        for document in documents:
            (tmp_path / f"training-{document['profile']}.json").write_text(json.dumps(document))
        return tmp_path

    return write


@pytest.fixture
def page(folder):
    return render(read(folder(made_document("cpu", study()))))


def row(page: str, name: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith(f'| <a id="{name}"></a>')]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_row_says_how_well_an_arm_ends_and_how_much_sooner_it_is_as_good(page):
    ends = ["JEST", "2", "40.5 ± 0.7", "40.5 ± 0.7", "-10.0 ± 0.0", "40.5", "10.0"]
    # At seed 0 the arm is at 0.2 at step 300 and the baseline at 600; at seed 1, at 0.21 as well.
    assert row(page, "jest") == [*ends, "never", "never", "never", "2.00 (2.00 to 2.00)", "0.67", "0.50"]
    assert row(page, "jest-final-uniform")[-5:] == ["2.00", "0.67", "0.67", "0.50", "0.50"]
    assert row(page, "jest-half-uniform")[3:5] == ["10.2", "150"]


def test_a_difference_of_two_rules_comes_with_its_error(page):
    told = row(page, "jest-minus-independent")
    assert told[:4] == ["JEST minus independent", "as usual", "2", "+20.0 ± 0.0"]
    assert told[-1] == "yes"


def test_baselines_say_which_is_best_with_and_without_a_reference(page):
    assert "by the validation: [filtered](#filtered) (filtered offline), [warm](#warm)" in page
    assert "ask the reference: [shuffled](#shuffled) (uniform, shuffled)." in page
    assert row(page, "warm")[3:6] == ["0.002", "55.5 ± 0.7", "55.5 ± 0.7"]


def test_negative_findings_are_listed(page):
    [listed] = re.findall(r"^## Where it does not pay\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    lines = {line.split("**")[1]: line for line in listed.splitlines() if line.startswith("- ")}
    assert "4 of 4" in lines["Never as good as the best baseline in as many steps"]
    assert "(#easy-reference-final-uniform) 15.5 (20.5)" in lines["Never as good as the best uniform in as many steps"]
    assert "(#jest-final-uniform) 0.50" in lines["More CPU seconds than the best uniform to be as good"]
    unknown = lines["Classes that the reference does not know: worse than the best baseline"]
    assert "4 of 4, [easy-reference](#easy-reference) 10.0 (20.0)" in unknown
    assert "55.5 against 40.5" in lines["Starting from the reference's weights, without selection, ends higher"]
    assert "[jest-every100-minus-usual]" in lines["Worse, beyond twice the error"]


def test_what_is_not_run_is_said_to_be_so(page):
    for title in ("2. How many to leave out", "5. Scoring at low resolution", "8. Larger batches"):
        assert re.search(rf"^## {title}\n\n[^\n]*\n\nNot run\.$", page, re.MULTILINE)
    assert row(page, "jest-every100")[0] == "JEST"
    assert "scored at low resolution: 13 times fewer steps | not run" in page


def test_every_row_has_one_name_and_every_link_within_the_page_leads_somewhere(page):
    names = re.findall(r'<a id="([^"]*)"></a>', page)
    assert len(names) == len(set(names)) >= 40
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) - {*names, "learning-rates"} <= headings


def test_pools_machine_and_references_are_told(page):
    assert "1,000 pairs, 200 curated ones" in page
    assert "test: 100 pictures of 20 classes, 7 of these pictures of unknown classes" in page
    assert "`cpu`: 8 cells, 16 runs (seeds 0, 1)" in page
    assert "a processor, 2 cores, 2 runs side by side" in page
    assert row(page, "reference-strong")[:4] == ["strong", "2", "50.0", "40.0"]


@pytest.mark.parametrize(
    ("question", "change", "usual"),
    [
        (RATIO, {"filter_ratio": 0.9}, {}),
        (TEACHER, {"reference": "weak"}, {}),
        (RESOLUTION, {"resolution": "low"}, {"resolution": "full"}),
        (STALENESS, {"publish_every": 1}, {}),
        (BATCH, {"batch": 512, "steps": 300}, {}),
        (HORIZON, {"steps": 2400}, {}),
        (DRAW, {"rule": "mixed_topk"}, {}),
        (EXPLORE, {"rule": "mixed_explore"}, {}),
        (WARM, {"rule": "mixed_warm"}, {}),
    ],
    ids=lambda value: value.number if isinstance(value, Question) else "",
)
def test_a_question_sets_a_cell_beside_the_usual_one_and_no_other_question_does(question, change, usual):
    cells = [replace(Cell("icons", "mixed"), **some) for some in (usual, change)]
    cells += [Cell("icons", "shuffled"), Cell("icons", "mixed", noise=0.5)]
    found = summaries(made_run(cell) for cell in cells)
    for asked in QUESTIONS:
        pairs = [(one.cell, other.cell) for one, other in asked.pairs(found)]
        assert pairs == ([(cells[1], cells[0])] if asked is question else [])


def test_names_differ_wherever_cells_do():
    usual = Cell("icons", "mixed")
    changes = [{}, {"pool": "other"}, {"noise": 0.5}, {"stream": "hot"}, {"reference": "weak"}, {"steps": 2400}]
    changes += [{"batch": 512}, {"publish_every": 1}, {"filter_ratio": 0.9}, {"resolution": "low"}]
    assert len({anchor(replace(usual, **change)) for change in changes}) == len(changes)


def test_other_profiles_have_their_sections(folder):
    rates = [made_run(Cell("icons", "mixed", learning_rate=rate), 99, ((600, end),)) for rate, end in RATES]
    again = [run for run in study() if run["seed"] == 0 and run["cell"]["rule"] in ("shuffled", "jest")]
    documents = [made_document(name, runs) for name, runs in (("tuning", rates), ("headline", again))]
    told = render(read(folder(made_document("cpu", study()), *documents)))
    assert row(told, "rate-mixed") == ["mixed", "as usual", "1", "20.0", "**30.0**", "0.002, at the edge"]
    # The shorter run has no filtering baseline, so that both are compared without it.
    assert row(told, "jest-again")[3:] == ["2.00", "2.00", "0.67", "0.67", "0.50", "0.50", "yes"]


def test_profiles_of_several_machines_make_one_page_and_seconds_are_compared_on_one(folder):
    fast = made_run(Cell("icons", "mixed"), 0, FAST, cpu=(1.0, 1.0))
    large = [made_run(Cell("iconify", rule), 0, curve) for rule, curve in (("shuffled", SLOW), ("jest", FAST))]
    known = next(run for run in study() if run["cell"]["rule"] == "jest" and run["seed"] == 0)
    other = made_document("gpu", [fast, *large, known | {"test": 0.99}]) | {"device": "a card"}
    told = render(read(folder(made_document("cpu", study()), other)))
    assert row(told, "mixed-final-uniform")[-5:] == ["2.00", "2.00", "2.00", "-", "-"]
    assert row(told, "iconify-jest-final-uniform")[-5:] == ["2.00"] * 5
    assert row(told, "jest")[3] == "40.5 ± 0.7"  # The first profile's run stays.
    assert "a card, 2 cores" in told


def test_larger_batches_say_how_much_pairs_weigh(folder):
    runs = []
    for batch, rule in ((128, "jest"), (128, "independent"), (512, "jest"), (512, "independent")):
        run = made_run(Cell("icons", rule, batch=batch), 0, FAST if batch > 128 and rule == "jest" else SLOW)
        runs.append(run | {"pair_variance": [[300, 0.02], [600, 0.0625]] if rule == "jest" else []})
    told = render(read(folder(made_document("cpu", runs))))
    assert row(told, "jest-b512-pairs") == ["JEST", "b = 512", "1", "2.0", "6.2"]
    assert row(told, "jest-b512-minus-independent")[3] == "+20.0"
    assert 'id="independent-b512-pairs"' not in told


RATES = ((1e-3, 0.2), (2e-3, 0.3))


def test_the_command_writes_the_same_bytes_each_time(folder, tmp_path, monkeypatch):
    source = folder(made_document("cpu", study()))
    written = []
    for turn in ("first", "second"):
        place = tmp_path / turn
        place.mkdir()
        monkeypatch.setattr("sys.argv", ["results", str(source), str(place / "results.md")])
        assert main() == 0
        written.append({file.name: file.read_bytes() for file in place.iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"results.md", "results-curves.svg", "results-speed.svg"}
    svg = written[0]["results-curves.svg"].decode()
    assert "JEST" in svg  # words are kept as words
    assert "filtered offline" in svg


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "holds no profile; must hold training-*.json of cpu, gpu, full, headline"),
        ({"profile": "cpu", "runs": []}, "lacks references, versions"),
        (made_document("tuning", []), "holds tuning; must"),
    ],
    ids=["none", "incomplete", "other"],
)
def test_what_cannot_be_told_of_is_refused(folder, capsys, monkeypatch, document, message):
    place = folder(*([document] if document else []))
    monkeypatch.setattr("sys.argv", ["results", str(place), str(place / "results.md")])
    assert main() == 2
    assert re.search(message.replace("training-*", r"training-\*"), capsys.readouterr().err)


def test_the_committed_page_is_what_the_committed_runs_give():
    if not [*RESULTS.glob("training-cpu.json")]:
        pytest.skip(f"no {PATTERN} of the profile cpu is committed, so there is no page to compare")
    assert (ROOT / "docs" / "results.md").read_text() == render(read(RESULTS)), "run `make results`"


def test_no_two_differences_have_one_name():
    pairs = [*all_pairs(together(read(RESULTS)).found)]
    compared = {tuple(replace(one.cell, learning_rate=0.0) for one in pair) for pair in pairs}
    assert len({name_of(*pair) for pair in pairs}) == len(compared)


def test_every_row_that_docs_name_is_on_the_page():
    if not (page := ROOT / "docs" / "results.md").exists():
        pytest.skip("docs/results.md is not written yet, so that no row can be named")
    text = page.read_text()
    names = {*re.findall(r'<a id="([^"]*)"></a>', text)}
    names |= {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        for name in re.findall(r"\]\([^)#]*results\.md#([^)]*)\)", file.read_text())
        if name not in names
    ]
    assert not missing
