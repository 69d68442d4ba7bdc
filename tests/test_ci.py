"""What .ci/run calls, and what it says at its end. `make` is a stand-in that can run small tests; so are the rest."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ("bash", "dirname", "mktemp", "rm")
DEBIAN = ("prometheus", "redis-server", "redis-sentinel")
VERBS = ["check", "test", "test-integration", "monitoring-test", "deploy-test", "audit"]
# Stands for `make VERB TEST_FLAGS="…"`: runs the tests in the folder VERB, if there is one.
MAKE = """
import os, shlex, subprocess, sys
from pathlib import Path
verb, flags = sys.argv[1], [part.partition("=")[2] for part in sys.argv[2:]]
with open("{calls}", "a") as calls:
    calls.write(verb + "\\n")
if verb in {failing!r}:
    sys.exit(1)
if (tests := Path("{tests}") / verb).is_dir():
    options = ["-p", "support.report", "--rootdir", str(tests), "-c", os.devnull, *shlex.split(" ".join(flags)), "."]
    environment = os.environ | {{"PYTHONPATH": "{path}"}}
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tests, env=environment)
    sys.exit(done.returncode)
"""


class Done:
    """What a run called, and what came of it."""

    def __init__(self, status: int, folder: Path, stdout: str, stderr: str) -> None:
        self.status, self.stderr = status, stderr
        self.verbs = (folder / "calls").read_text().split()
        self.summary = stdout.partition("--- SUMMARY OF ALL TESTS\n")[2].splitlines()
        installed = folder / "installed"
        self.installed = installed.read_text().splitlines() if installed.exists() else []


@pytest.fixture
def ci(tmp_path):
    """Runs it with programs that are there, verbs that fail, and files of tests by their verbs."""
    programs, tests = tmp_path / "bin", tmp_path / "tests"
    programs.mkdir()
    for name in REAL:
        (programs / name).symlink_to(shutil.which(name))

    def program(name: str, code: str, interpreter: str) -> None:
        (programs / name).write_text(f"#!{interpreter}\n{code}\n")
        (programs / name).chmod(0o755)

    def run(there=DEBIAN, failing=(), tests_of=None, apt="exit 0", **env) -> Done:
        for verb, code in (tests_of or {}).items():
            (tests / verb).mkdir(parents=True)
            (tests / verb / "test_it.py").write_text(code)
        make = MAKE.format(calls=tmp_path / "calls", failing=failing, tests=tests, path=ROOT / "tests")
        program("make", make, sys.executable)
        shell = shutil.which("bash")
        program("id", "echo 0", shell)
        program("install", "exit 0", shell)
        program("apt-get", f'echo "$@" >> {tmp_path / "installed"}; {apt}', shell)
        for name in there:
            program(name, "exit 0", shell)
        done = subprocess.run(
            [ROOT / ".ci" / "run"],
            env={"PATH": str(programs), "PYTHON": sys.executable, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Done(done.returncode, tmp_path, done.stdout, done.stderr)

    return run


def test_all_is_run_and_all_was_there(ci):
    done = ci(CI="1")
    assert (done.status, done.verbs, done.stderr, done.installed) == (0, VERBS, "", [])


def test_debians_programs_are_installed_in_ci_and_nowhere_else(ci):
    assert ci(there=("prometheus",)).installed == []
    update, install = ci(there=("prometheus",), CI="1").installed
    assert update.split()[0] == "update"
    assert install.split()[0] == "install"
    assert install.endswith("redis-server redis-sentinel")


def test_without_a_network_the_rest_is_tested(ci):
    done = ci(there=(), apt="exit 1", CI="1")
    assert (done.status, done.verbs) == (0, VERBS)
    assert [line.partition(" failed")[0] for line in done.stderr.splitlines()] == [
        "--- apt-get update",
        "--- apt-get install prometheus redis-server redis-sentinel",
    ]


def test_what_fails_in_the_audit_is_told_and_stops_nothing(ci):
    done = ci(failing=("audit",))
    assert (done.status, done.verbs) == (0, VERBS)
    assert done.stderr == "--- AUDIT: see above\n"


def test_failing_tests_are_tried_once_more(ci):
    done = ci(failing=("test",))
    assert done.status != 0
    assert done.verbs == ["check", "test", "test"]
    assert done.stderr.startswith("--- once more, what failed in test")


FLAKY = """
from pathlib import Path

def test_first_it_fails():
    first = not Path("been-here").exists()
    Path("been-here").touch()
    assert not first, "too late by 3 s"

def test_always_passes():
    pass
"""


def test_a_second_try_hides_nothing(ci):
    done = ci(tests_of={"test": FLAKY})
    assert (done.status, done.verbs) == (0, ["check", "test", "test", *VERBS[2:]])
    assert done.summary[0].startswith("1 passed, 1 failed, 0 skipped in ")
    assert done.summary[0].endswith(": make test")
    assert done.summary[1].startswith("1 passed, 0 failed, 0 skipped in ")
    assert done.summary[1].endswith(": make test (once more, what failed)")
    assert done.summary[2:4] == [
        "--- FAILED AT FIRST AND PASSED ALONE: 1",
        "  test_it.py::test_first_it_fails (make test): AssertionError: too late by 3 s",
    ]
    assert done.summary[4] == "--- FAILED: 0"


def test_what_fails_twice_is_told_and_ends_it(ci):
    done = ci(tests_of={"test": "def test_it():\n    raise ValueError('broken')\n"})
    assert done.status != 0
    assert done.verbs == ["check", "test", "test"]
    assert "--- FAILED: 1" in done.summary
    assert "  test_it.py::test_it (make test): ValueError: broken" in done.summary


SKIPPING = """
import os, pytest

def test_left_out_here():
    if "{verb}" == "test":
        pytest.skip("takes minutes")

@pytest.mark.parametrize("device", [0, 1])
def test_left_out_everywhere(device):
    pytest.skip("no device")
"""


def test_what_no_run_ran_is_told_by_reason(ci):
    """Both verbs run the same file here, as `make test` and `make monitoring-test` do."""
    done = ci(tests_of={verb: SKIPPING.format(verb=verb) for verb in ("test", "monitoring-test")})
    assert done.status == 0
    at = done.summary.index("--- SKIPPED IN EVERY RUN: 2")
    assert done.summary[at + 1 :] == ["      2  no device"]
