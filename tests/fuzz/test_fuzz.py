"""A short slice of the fuzzer, what it sees, and that it finds a decoder that lacks a check. In processes of their own:
the fuzzer forks, and limits memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = Path(__file__).with_name("findings")
BROKEN = """
import os, signal, time
from contextlib import contextmanager
from fuzz import runner
from fuzz.mutation import raw
from fuzz.target import Target

runner.HANG_SECONDS = 1.0

@contextmanager
def prepare(folder):
    def decode(data):
        match data[:1]:
            case b"c": os.kill(os.getpid(), signal.SIGSEGV)
            case b"h": time.sleep(60)
            case b"m": b"m" * (200 << 20)
            case b"e": raise KeyError("no such key")
            case b"r": raise ValueError("refused")
        return ""
    yield decode

seeds = [b"a", b"c1", b"h2", b"m3", b"e4", b"r5"]
target = Target("broken", "", prepare, lambda: seeds, lambda random, one, other: b"a", (ValueError,))
summary = runner.fuzz(target, 0, 20, 60)
for one in summary.findings:
    print(one.kind, one.data.decode())
print("inputs", summary.inputs, "outcomes", len(summary.outcomes))
"""
# A decoder, a check in it, what is left without that check, and the target that must notice.
MUTANTS = [
    ("selector_proto.tensors", "if end > len(payload):", "if False:", "tensors", "tensors"),
    ("selector_proto.tensors", "lengths.min() < 0 or ", "", "tensors", "tensors"),
    ("selector_proto.safetensors", "if start != end:", "if False:", "weights", "safetensors"),
    (
        "selector_proto.safetensors",
        "if end - start != prod(shape) * ITEM_BYTES[dtype]:",
        "if False:",
        "weights",
        "safetensors",
    ),
    (
        "selector_client.selecting.selection",
        " or indices.max(initial=-1) >= candidates",
        "",
        "client",
        "select-response",
    ),
    ("selector_server.encoding.image_files", "if pixels > most_pixels:", "if False:", "images", "images"),
]
MUTATE = """
import importlib, sys
from importlib.machinery import SourceFileLoader

module, check, without, file, name = sys.argv[1:]
whole = SourceFileLoader.get_code

def get_code(loader, fullname):
    if fullname != module:
        return whole(loader, fullname)
    source = loader.get_data(loader.path).decode()
    assert source.count(check) == 1, f"{check!r} is no longer there"
    return compile(source.replace(check, without), loader.path, "exec")

SourceFileLoader.get_code = get_code
from fuzz.runner import fuzz
target = next(one for one in importlib.import_module(f"fuzz.targets.{file}").TARGETS if one.name == name)
summary = fuzz(target, 0, 3000, 60)
print(len(summary.findings), [one.what[:200] for one in summary.findings])
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process that finds what this one finds."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)


def test_a_slice_over_every_decoder(tmp_path):
    done = python("-m", "fuzz", "--inputs", "500", "--json", str(tmp_path / "report.json"), "--findings", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["targets"]) > 15
    assert report["findings"] == 0
    for row in report["targets"]:
        assert row["inputs"] >= 40, row
        assert row["accepted"] > 0, row  # otherwise nothing behind the first check is reached
        assert row["outcomes"] > 1, row


def test_figures_of_every_target_are_committed_and_told():
    """The table of the docs has the rows of the report."""
    report = json.loads((ROOT / "benchmarks" / "results" / "fuzz.json").read_text())
    rows = set()
    for one in report["targets"]:
        share, speed = f"{one['accepted'] / one['inputs']:.1%}", f"{one['inputs_per_second']:,}"
        cells = (f"`{one['target']}`", one["decodes"], f"{one['inputs']:,}", share, one["outcomes"], speed)
        rows.add(f"| {' | '.join(map(str, cells))} | {one['slowest_cpu_ms']:.0f} | {one['peak_growth_mib']:.1f} |")
    page = (ROOT / "docs" / "fuzzing.md").read_text()
    assert rows == set(re.findall(r"^\| `.*\|$", page, re.MULTILINE))
    assert f"{report['inputs']:,} inputs took {report['seconds']:.0f} s" in page
    names = python("-c", "from fuzz.registry import TARGETS\nfor one in TARGETS: print(one.name)").stdout.split()
    assert sorted(names) == sorted(one["target"] for one in report["targets"])


def test_the_same_seed_gives_the_same_inputs_and_outcomes(tmp_path):
    digests = []
    for run in ("first", "again"):
        file = tmp_path / run
        names = ("--target", "safetensors", "--target", "bundle")
        done = python(
            "-m", "fuzz", "--inputs", "300", "--seed", "5", *names, "--json", str(file), "--findings", str(tmp_path)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        digests.append([row["digest"] for row in json.loads(file.read_text())["targets"]])
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]


def test_crashes_hangs_memory_and_undocumented_errors_are_seen():
    done = python("-c", BROKEN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"crash c1", "hang h2", "memory m3", "exception e4"} == set(lines[:-1])
    assert lines[-1].startswith("inputs ")


@pytest.mark.parametrize(("module", "check", "without", "file", "target"), MUTANTS, ids=[one[1] for one in MUTANTS])
def test_a_missing_check_is_found(module, check, without, file, target):
    done = python("-c", MUTATE, module, check, without, file, target)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0, done.stdout


def test_every_reproducer_is_tried_again():
    from fuzz.registry import TARGETS

    known = {target.name for target in TARGETS}
    files = list(FINDINGS.glob("*.bin"))
    assert len(files) > 20
    assert {file.stem.rpartition("-")[0] for file in files} <= known
