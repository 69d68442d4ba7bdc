"""The contract: stubs match it, and it is linted. That it keeps what was released, tests/skew checks."""

import subprocess
import sys
from pathlib import Path

from support import programs

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "proto" / "selector_proto" / "v1"


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


def test_the_contract_is_linted():
    command = [programs.required("buf"), "lint"]
    done = subprocess.run(command, cwd=ROOT / "proto", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
