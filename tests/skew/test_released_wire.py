"""The contract keeps what was released: no field, number, type or method of it is changed or taken away."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support import programs

PROTO = Path(__file__).resolve().parents[2] / "proto"
[WIRE] = (Path(__file__).parent / "released").glob("*.binpb")


def broken(contract: Path) -> str:
    """What a folder of .proto files breaks of the released wire; empty if nothing."""
    command = [programs.required("buf"), "breaking", contract, "--against", WIRE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (100 if done.stdout else 0), done.stderr
    return done.stdout


def test_the_contract_breaks_nothing_that_was_released():
    assert broken(PROTO) == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("selector.proto", "  uint32 rank = ", "  sint64 rank = ", '"rank" on message "Selection" changed type'),
        ("selector.proto", "  repeated float scores = 2;\n", "", '"scores" on message "SelectResponse" was deleted'),
        ("weights.proto", "message WeightsManifest {", "message Manifest {", '"WeightsManifest" was deleted'),
    ],
)
def test_a_change_that_breaks_it_is_seen(tmp_path, file, old, new, said):
    shutil.copytree(PROTO, tmp_path / "proto")
    path = tmp_path / "proto" / "selector" / "v1" / file
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    assert said in broken(tmp_path / "proto")
