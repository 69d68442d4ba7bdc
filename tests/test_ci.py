"""What .ci/run calls, and what it says at its end; `make` and the rest are stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ("bash", "dirname")


@pytest.fixture
def ci(tmp_path):
    """Runs it with programs that succeed and others that fail: status, what `make` was called for, and stderr."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in REAL:
        (programs / name).symlink_to(shutil.which(name))

    def program(name: str, line: str) -> None:
        (programs / name).write_text(f"#!{shutil.which('bash')}\n{line}\n")
        (programs / name).chmod(0o755)

    def run(there=(), failing=(), **env) -> tuple[int, list[str], str]:
        program("make", f'echo "$1" >> {calls}; [[ $1 != @({"|".join(failing) or "-"}) ]]')
        program("id", "echo 0")
        for name in there:
            program(name, "exit 0")
        program("apt-get", "exit 1")
        done = subprocess.run(
            [ROOT / ".ci" / "run"], env={"PATH": str(programs), **env}, capture_output=True, text=True, timeout=60
        )
        return done.returncode, calls.read_text().split(), done.stderr

    return run


VERBS = ["check", "test", "monitoring-test", "deploy-test", "audit"]


def test_all_is_run_and_all_was_there(ci):
    assert ci(("prometheus", "promtool", "npm"), CI="1") == (0, VERBS, "")


def test_without_prometheus_the_rest_is_tested_and_the_last_lines_say_what_was_not(ci):
    status, verbs, said = ci(("npm",), CI="1")
    assert (status, verbs) == (0, VERBS)
    assert [line.split(":")[1].split()[0] for line in said.splitlines()] == ["prometheus", "promtool"]
    assert all(line.startswith("--- NOT TESTED") for line in said.splitlines())


def test_what_fails_in_the_audit_is_told_and_stops_nothing(ci):
    status, verbs, said = ci(("prometheus", "promtool", "npm"), failing=("audit",))
    assert (status, verbs) == (0, VERBS)
    assert said == "--- AUDIT: see above\n"


def test_failing_tests_are_tried_once_more(ci):
    status, verbs, said = ci(failing=("test",))
    assert status != 0
    assert verbs == ["check", "test", "test"]
    assert said.startswith("--- once more, what failed in test")
