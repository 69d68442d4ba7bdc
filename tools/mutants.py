"""Mutation check: changes the code in one place, runs the tests that reach it, and lists the changes that none noticed.

    python tools/mutants.py [--package NAME]… [--sample N] [--seed N] [--seconds S] [--children N] [--again] [--page]

mutmut makes the changes, in a copy of the tree. What came of them goes into benchmarks/results/mutants.json, whose
"judged" is written by hand and kept; docs/mutants.md is written from that file.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from platform import platform, python_version
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "mutants.json", ROOT / "docs" / "mutants.md"
# Where the packages stand here. In the copy they stand at its top, as in a wheel.
PLACES = {"selector_proto": "proto", "selector_client": "client", "selector_tools": "tools", "selector_server": "."}
WITHOUT = {
    "selector_server/sampling/losses/kernel_triton.py": "it runs on a GPU, or in Triton's interpreter",
    "selector_server/sampling/losses/kernel.py": "it starts what runs there",
}
# What the exit status of a mutant's tests says. 2 are errors at import, 24 (SIGXCPU) is the limit of time.
STATUS = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 5: "no tests", 33: "no tests"}
STATUS |= {24: "timeout", -24: "timeout", 152: "timeout"}
TOOLS = ("mutmut", "pytest", "torch")
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:support.order", "-p", "support.in_process")
COLUMNS = ("killed", "survived", "no tests", "timeout", "unclear")


@dataclass(frozen=True)
class Package:
    """Code as it is imported, and pytest's arguments for its tests. Those that start a sidecar do not run."""

    code: list[str]
    tests: list[str]


def files(folder: str, names: str, option: str = "") -> list[str]:
    """pytest's arguments for some files of a folder of tests."""
    return [f"{option}tests/{folder}/test_{name}.py" for name in names.split()]


# Left out are long tests of many processes; of the server's and the client's, all that reach nothing of the package.
PACKAGES = {
    "sampling": Package(["selector_server/sampling"], ["tests/sampling", *files("sampling", "kernel", "--ignore=")]),
    "weights": Package(
        ["selector_server/weights", "selector_proto/weights"],
        [
            "tests/weights",
            "tests/proto",
            *files("weights", "killed sharded_publish many_swaps buffers any_redis clocks", "--ignore="),
        ],
    ),
    "engine": Package(
        ["selector_server/engine"],
        [
            *files("server", "abandoned admission bad_samples bad_tensors closed engine front_door group_life joining"),
            *files("server", "select"),
            *files("weights", "staleness"),
        ],
    ),
    "loader": Package(
        ["selector_client/loading"],
        files("client", "iteration layouts loader positions resume epochs short_super_batches callbacks metrics"),
    ),
}


class Copy:
    """A copy of the tree, in which mutmut changes one package."""

    def __init__(self, folder: Path, package: Package) -> None:
        self._tree, self._shared, self._rest = folder / "tree", folder / "shared", folder / "rest"
        self._program = Path(sys.executable).with_name("mutmut")
        for there in (self._shared, self._rest, self._tree / "mutants" / "tests"):
            there.mkdir(parents=True)  # before Python looks there for modules: it remembers what is missing
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        files = subprocess.check_output(listing, cwd=ROOT, text=True).splitlines()
        for name in files:
            (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self._tree / name)
        for name, place in PLACES.items():
            if place != ".":  # mutmut takes the names of modules from their paths
                shutil.copytree(self._tree / place / name, self._tree / name)
        settings = {
            "source_paths": list(PLACES),
            "only_mutate": [f"{code}/*" for code in package.code],
            "do_not_mutate": list(WITHOUT),
            "also_copy": sorted({name.partition("/")[0] for name in files} - PLACES.keys()),
            "pytest_add_cli_args_test_selection": package.tests,
            "pytest_add_cli_args": [*PLUGINS, "--timeout=40"],  # the longest of the tests takes 15 s
            "process_isolation": "forkserver",  # torch and grpc have threads, which do not survive a fork
            "timeout_constant": 5,  # a mutant's tests may take (their time + 5 s) * 3
            "timeout_multiplier": 3,
            "use_git_change_detection": False,
            "debug": True,  # or a test that fails at first would not be told
        }
        with (self._tree / "pyproject.toml").open("a") as file:
            file.write("\n[tool.mutmut]\n" + "".join(f"{one} = {json.dumps(it)}\n" for one, it in settings.items()))

    def make(self) -> list[str]:
        """Makes all mutants, runs the tests once to see which functions each of them reaches, and returns all names."""
        self._mutmut("run", "none of them").wait()  # the names are known only after this
        if not (self._tree / "mutants" / "mutmut-stats.json").exists():
            raise SystemExit((self._tree / "log").read_text()[-5000:])
        return sorted(self._codes())

    def check(self, mutants: list[str], children: int, seconds: float) -> dict[str, str]:
        """What came of those of the mutants that could be run within so many seconds. Ends the program if mutmut ended
        by itself with an error: what it had done by then would look like a finished run."""
        began, process = time.monotonic(), self._mutmut("run", "--max-children", str(children), *mutants)
        while process.poll() is None and (took := time.monotonic() - began) < seconds:
            done = self._statuses(mutants)
            survived = [*done.values()].count("survived")
            print(f"\r  {len(done)} of {len(mutants)} run, {survived} survived, {took:.0f} s ", end="", flush=True)
            time.sleep(2)
        failed = process.poll()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and servers whose test was stopped
        process.wait()
        print()
        if failed:  # neither None, when the time was up, nor 0
            raise SystemExit(f"mutmut ended with {failed}: {(self._tree / 'log').read_text()[-5000:]}")
        return self._statuses(mutants)

    def change(self, mutant: str) -> dict[str, str]:
        """Where a mutant is, and its code before and after."""
        output = subprocess.check_output([self._program, "show", mutant], cwd=self._tree, text=True)
        _, old, _, *lines = output.splitlines()
        before, after = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
        path, function = old.removeprefix("--- "), mutant.rpartition(".")[2].partition("__mutmut_")[0]
        function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        file = str(Path(PLACES[path.partition("/")[0]], path))
        return {"file": file, "function": function, "before": before, "after": after}

    def _statuses(self, mutants: list[str]) -> dict[str, str]:
        codes = self._codes()
        return {it: STATUS.get(code, "unclear") for it in mutants if (code := codes.get(it)) is not None}

    def _codes(self) -> dict[str, int | None]:
        """Exit statuses of all mutants: None of those that were not run."""
        found: dict[str, int | None] = {}
        for file in (self._tree / "mutants").rglob("*.meta"):
            with suppress(json.JSONDecodeError):  # it is being written
                found |= json.loads(file.read_text())["exit_code_by_key"]
        return found

    def _mutmut(self, *arguments: str) -> subprocess.Popen[bytes]:
        env = os.environ | {
            "PYTHONPATH": f"{self._tree}/mutants:{self._tree}/mutants/tests",
            "TEST_SHARED_FOLDER": str(self._shared),
            "TMPDIR": str(self._rest),
            "OMP_NUM_THREADS": "1",
        }
        command = [str(self._program), *arguments]
        with (self._tree / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self._tree, env=env, stdout=log, stderr=log, start_new_session=True)


def sample(mutants: list[str], size: int, seed: int) -> list[str]:
    """So many of the mutants. Whether one is among the first does not depend on which others there are."""
    return sorted(mutants, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:size]


def checked(name: str, old: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Checks a package. With --again these are the survivors of the old results, which keep what else they have."""
    print(f"{name}: makes mutants and runs the tests once", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Copy(Path(folder), PACKAGES[name])
        mutants = copy.make()
        chosen = list(old["survivors"]) if options.again else sample(mutants, options.sample, options.seed)
        results = (old["results"] if options.again else {}) | copy.check(chosen, options.children, options.seconds)
        survivors = {one: copy.change(one) for one, status in results.items() if status == "survived"}
    return {"mutants": len(mutants), "results": results, "survivors": survivors}


def key(survivor: dict[str, str]) -> str:
    """What a judgement is about. It holds as long as the line stays the same."""
    return "{file} {function}: {before} -> {after}".format(**survivor)


def row(name: str, package: dict[str, Any]) -> str:
    """A package's line of the table."""
    count = Counter(package["results"].values())
    noticed = count["killed"] + count["timeout"]
    score = noticed / max(1, noticed + count["survived"])
    cells = [name, package["mutants"], count.total(), *(count[one] for one in COLUMNS), f"{score:.0%}"]
    return f"| {' | '.join(map(str, cells))} |"


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    survivors = [one for package in report["packages"].values() for one in package["survivors"].values()]
    listed: list[str] = []
    for file in sorted({one["file"] for one in survivors}):
        listed += ["", f"### {file}", ""]
        for one in sorted((one for one in survivors if one["file"] == file), key=key):
            judged = report["judged"].get(key(one), "**not judged**")
            listed.append("- `{function}`: `{before}` → `{after}`".format(**one) + f". {judged}")
    return TEXT.format(
        table="\n".join(row(*package) for package in report["packages"].items()),
        without="; ".join(f"`{file}`, for {why}" for file, why in WITHOUT.items()),
        judged=sum(key(one) in report["judged"] for one in survivors),
        survivors=len(survivors),
        listed="\n".join(listed),
        **report["run"],
    )


def main() -> None:
    """Does what the command line says, and writes the results and the page."""
    parser = argparse.ArgumentParser(description="Changes the code and sees whether a test notices: docs/mutants.md.")
    parser.add_argument("--package", action="append", choices=PACKAGES, help="default: all")
    parser.add_argument("--sample", type=int, default=120, help="mutants of each package (default 120)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other mutants")
    parser.add_argument("--seconds", type=float, default=400, help="time for each package's mutants (default 400)")
    parser.add_argument("--children", type=int, default=2, help="mutants under way at a time (default 2)")
    parser.add_argument("--again", action="store_true", help="only those that survived: after new tests")
    parser.add_argument("--page", action="store_true", help="only write the page: after new judgements")
    options = parser.parse_args()
    for name in () if options.page else options.package or PACKAGES:
        old = _report()["packages"].get(name, {"results": {}, "survivors": {}})
        if options.again and not old["survivors"]:
            continue
        package = checked(name, old, options)
        report = _report()  # which may have got judgements meanwhile
        report["packages"][name] = package
        report["run"] = {
            "date": str(date.today()),
            "machine": f"{os.cpu_count()} cores, {platform()}",
            "versions": ", ".join([f"Python {python_version()}", *(f"{it} {metadata.version(it)}" for it in TOOLS)]),
        }
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(_report()))


def _report() -> dict[str, Any]:
    found: dict[str, Any] = {"run": {}, "packages": {}, "judged": {}}
    if RESULTS.exists():
        found |= json.loads(RESULTS.read_text())
    return found


TEXT = """# Mutation check

`make mutants` changes the code in one place (another operator, number, argument or name), runs the tests that reach the
place, and sees whether one of them fails. A change that no test notices has *survived*: either a test is missing, or
the change makes no difference. This page is written by `tools/mutants.py`, from `benchmarks/results/mutants.json`.

```sh
make mutants                                                # all four packages
make mutants MUTANTS_FLAGS="--package loader --seed 1"      # other mutants of one package
make mutants MUTANTS_FLAGS="--again"                        # the survivors once more, after new tests
make mutants MUTANTS_FLAGS="--page"                         # this page, after new judgements
```

A seeded sample bounds the time; `checked` of all `mutants` were run. Only tests that start no sidecar are, for mutmut
sees which functions a test reaches in its own process alone. What only tests with a sidecar reach has `no tests` here.
Functions with a decorator are not changed. Left out are {without}. The score is the share of noticed ones (a test
failed, or went on too long) among all that some test reaches.

Of {date}, on {machine}, with {versions}:

| package | mutants | checked | killed | survived | no tests | timeout | unclear | score |
|---|---|---|---|---|---|---|---|---|
{table}

## Survivors

{survivors}, of which {judged} are judged, in `judged` of the results. A judgement holds until its line changes.
{listed}
"""


if __name__ == "__main__":
    main()
