"""The dashboard has the types that Grafana's own schema gives it: no unknown key, no value of another kind."""

import os
import re
import subprocess

import pytest
from support import programs
from support.prometheus import MONITORING

GRAFANA, TYPESCRIPT = "13.2.3", "5.9.3"
# The schema has enums, of which JSON has the values.
ENUMS = {r'"mode": "absolute"': '"mode": ThresholdsMode.Absolute'}
FLAGS = "--noEmit --strict --skipLibCheck --moduleResolution bundler --module esnext --target es2022"


def compiled(folder, text: str) -> str:
    """What the compiler finds wrong with a dashboard's JSON."""
    for old, new in ENUMS.items():
        text = re.sub(old, new, text)
    lines = ['import { Dashboard, ThresholdsMode } from "@grafana/schema";', "void ThresholdsMode;"]
    (folder / "dashboard.ts").write_text("\n".join([*lines, f"export const dashboard: Dashboard = {text};"]))
    done = subprocess.run(
        ["npx", "tsc", *FLAGS.split(), "dashboard.ts"], cwd=folder, capture_output=True, text=True, timeout=110
    )
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    if os.environ.get("MONITORING_TEST") != "1":
        pytest.skip("downloads Grafana's schema: make monitoring-test runs it")
    programs.optional("npm", "npm")
    folder = tmp_path_factory.mktemp("schema")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    packages = [f"@grafana/schema@{GRAFANA}", f"typescript@{TYPESCRIPT}"]
    subprocess.run([*command, *packages], cwd=folder, check=True, timeout=110)
    return folder


def test_the_dashboard_fits_grafanas_schema(schema):
    assert compiled(schema, (MONITORING / "dashboard.json").read_text()) == ""


def test_the_compiler_would_see_a_mistake(schema):
    text = (MONITORING / "dashboard.json").read_text()
    assert "graphTooltips" in compiled(schema, text.replace('"graphTooltip":', '"graphTooltips":'))
    assert compiled(schema, text.replace('"uid": "selector"', '"uid": 7'))
