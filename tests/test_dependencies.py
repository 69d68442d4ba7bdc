"""What is installed is pinned and may be used, and a trainer installs five packages."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_installed_is_pinned_and_may_be_used(audit):
    names = audit.installed()
    assert {"grpcio", "torch", "onnxruntime", "pytest"} <= set(names)
    assert list(audit.problems(names, audit.pins(), {name: audit.licence(name) for name in names})) == []


def test_what_is_wrong_is_told(audit):
    licences = {"grpcio": "Apache-2.0", "evil": "AGPL-3.0-only", "odd": "unknown"}
    found = list(audit.problems(licences, {"grpcio": "1", "odd": "1"}, licences))
    assert [line.split(" ")[0] for line in found] == ["evil", "evil", "odd"]
    assert "is not pinned in constraints.txt" in found[0]
    assert "'AGPL-3.0-only', which is not in the list" in found[1]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("GNU Lesser General Public License (LGPL)", False),
        ("Proprietary", False),
        ("unknown", False),
    ],
)
def test_licences(audit, text, verdict):
    assert audit.allowed(text) is verdict


def test_no_answer_about_vulnerabilities_is_no_success(audit, tmp_path, capsys):
    (program := tmp_path / "pip-audit").write_text("#!/bin/sh\necho 'connection refused' >&2\nexit 1\n")
    program.chmod(0o755)
    assert audit.vulnerabilities(str(program)) == ([], "connection refused")
    audit.main([str(program)])
    assert "NOT CHECKED for known vulnerabilities: connection refused" in capsys.readouterr().out
    assert audit.vulnerabilities(str(tmp_path / "none"))[1]


def test_a_known_vulnerability_fails(audit, tmp_path, capsys):
    report = '{"dependencies": [{"name": "grpcio", "version": "1", "vulns": [{"id": "CVE-1"}]}]}'
    (program := tmp_path / "pip-audit").write_text(
        f'#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\necho \'{report}\' > "$2"\nexit 1\n'
    )
    program.chmod(0o755)
    assert audit.main([str(program)]) == 1
    assert "grpcio 1: CVE-1" in capsys.readouterr().out
