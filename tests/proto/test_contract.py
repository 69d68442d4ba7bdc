"""The contract: stubs match it, it is linted, and it does not break what was promised before."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "proto" / "selector_proto" / "v1"
BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
needs_buf = pytest.mark.skipif(BUF is None, reason="buf is not installed (pip install buf-bin)")


def run(*command, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)


def test_committed_stubs_are_what_the_contract_generates(tmp_path):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # protoc finds the mypy plugin on the PATH
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_stubs.py", tmp_path],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {file.name: file.read_text() for file in (tmp_path / "selector_proto" / "v1").iterdir()}
    committed = {file.name: file.read_text() for file in STUBS.glob("*_pb2*")}
    assert made.keys() == committed.keys()
    for name, text in made.items():
        assert text == committed[name], f"{name} is not what the contract generates: make proto"


@needs_buf
def test_the_contract_is_linted():
    done = run(BUF, "lint", cwd=ROOT / "proto")
    assert done.returncode == 0, done.stdout


@needs_buf
def test_the_contract_breaks_nothing_that_was_committed():
    before = run("git", "rev-parse", "--verify", "-q", "main:proto/buf.yaml")
    if before.returncode:
        pytest.skip("no git branch main with an earlier contract to compare with")
    done = run(BUF, "breaking", "proto", "--against", ".git#branch=main,subdir=proto")
    assert done.returncode == 0, done.stdout + done.stderr
