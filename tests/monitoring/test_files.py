"""Dashboard, alerts and docs agree with the metrics that there are, and with each other."""

import json
import re
import subprocess
import sys

import pytest
from support.metric_names import in_docs, of_client, of_server, sample_names, table
from support.prometheus import FOREIGN, MONITORING, alerts, needs, queries, selectors, substituted

DOCS = MONITORING.parents[1] / "docs"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
KNOWN = sample_names(of_server() + of_client()) | FOREIGN
# No label may have more values than somebody could list.
LABELS = {"method", "code", "stage", "reason", "where", "action", "result", "phase", "state", "kind", "of", "criterion"}
LABELS |= {"version", "device", "provider", "file", "listener", "slice"}  # of slices there are 51 of a kind
UNITS = {"short", "s", "bytes", "Bps", "reqps", "cps", "percentunit", "bool"}


def test_no_metric_has_an_id_as_label_and_every_name_says_its_unit():
    rows = of_server() + of_client()
    assert len(rows) > 60
    for name, kind, labels, text in rows:
        assert set(labels) <= LABELS, name
        assert re.fullmatch(r"selector_[a-z0-9_]+", name), name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|mib|percent)(_|$)", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert text, name
    names = [name for name, *_ in rows]
    assert len(names) == len(set(names))


def test_the_tables_in_the_docs_are_what_the_code_has():
    assert in_docs(DOCS / "monitoring.md") == [table(of_server()), table(of_client())]


def test_the_dashboard_is_what_its_script_writes():
    code = "import json, dashboard; print(json.dumps(dashboard.dashboard()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=MONITORING, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == DASHBOARD, "run deploy/monitoring/dashboard.py"


def test_every_panel_says_what_it_shows_in_which_unit():
    for panel in PANELS:
        assert len(panel["description"]) > 5, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
    titles = [(panel["title"], panel["description"]) for panel in PANELS]
    assert len(titles) == len(set(titles)) > 40


def test_no_two_panels_share_an_id_or_a_place():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_variables_choose_what_is_shown():
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "trainer"]
    for _, expression in queries():
        assert set(re.findall(r"\$(\w+)", expression)) <= {*names, "__rate_interval"}
        if "selector_" in expression:
            assert "$instance" in expression or "$trainer" in expression, expression


@pytest.mark.parametrize(
    "expression", [*(substituted(expression) for _, expression in queries()), *(rule["expr"] for rule in alerts())]
)
def test_every_expression_is_promql_about_metrics_that_there_are(expression):
    found = selectors(expression)
    assert found
    assert {selector.name for selector in found} <= KNOWN


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    runbook = (DOCS / "runbook.md").read_text()
    for rule in alerts():
        name, notes = rule["alert"], rule["annotations"]
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert notes["summary"]
        assert notes["description"]
        assert notes["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        [entry] = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL)
        assert all(word in entry for word in ("**Means.**", "**See.**", "**Do.**")), name
    entries = re.findall(r"^## (.*)", runbook, re.MULTILINE)
    assert entries == [*(rule["alert"] for rule in alerts()), "A badly shuffled stream"]


def test_every_alert_has_unit_tests_of_both_kinds():
    import yaml

    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for name in (rule["alert"] for rule in alerts()):
        kinds = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
        assert kinds == {True, False}, name


@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "alerts_test.yaml")],
    ids=" ".join,
)
def test_promtool_is_content(command):
    done = subprocess.run([needs("promtool"), *command], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
