"""python -m fuzz [--inputs N] [--seconds S] [--target NAME]… [--json FILE]: exits 1 if anything was found."""

import argparse
import json
import math
import os
import platform
import sys
from pathlib import Path


def main() -> int:
    os.environ.update(
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RUST_BACKTRACE="0"
    )  # before a fork
    from fuzz.registry import TARGETS
    from fuzz.runner import FINDINGS, fuzz, save

    parser = argparse.ArgumentParser(prog="fuzz", description="Hostile bytes for every decoder; see docs/fuzzing.md.")
    parser.add_argument("--target", action="append", choices=[one.name for one in TARGETS], help="default: all")
    parser.add_argument("--inputs", type=int, default=0, help="inputs of each target, about")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time of each target at most")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs")
    parser.add_argument("--json", type=Path, help="file for the report; rows of other targets in it stay")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="folder for inputs that were findings")
    options = parser.parse_args()
    inputs = options.inputs or (1000 if options.seconds == math.inf else 1 << 40)
    failed = False
    head = ("target", "inputs", "accepted", "outcomes", "inputs/s", "slowest ms", "growth MiB", "findings")
    print("{:18}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}{:>10}".format(*head), flush=True)
    for target in TARGETS:
        if options.target and target.name not in options.target:
            continue
        summary = fuzz(target, options.seed, int(inputs * target.share), options.seconds)
        row = summary.row()
        figures = (row[name] for name in ("target", "inputs", "accepted", "outcomes", "inputs_per_second"))
        more = (row["slowest_cpu_ms"], row["peak_growth_mib"], len(summary.findings))
        print("{:18}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}{:>10}".format(*figures, *more), flush=True)
        for one, file in zip(summary.findings, save(target, summary.findings, options.findings), strict=True):
            print(f"  {one.kind}: {one.what}\n    {file}", flush=True)
            failed = True
        if options.json:
            _write(options.json, options.seed, row)
    return int(failed)


def _write(file: Path, seed: int, row: dict[str, object]) -> None:
    """One target's figures into the report, which keeps those of the others."""
    rows = {one["target"]: one for one in json.loads(file.read_text())["targets"]} if file.exists() else {}
    rows[row["target"]] = row | {"seed": seed}
    report = {
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "system": platform.platform()},
        "inputs": sum(one["inputs"] for one in rows.values()),
        "seconds": round(sum(one["seconds"] for one in rows.values()), 1),
        "findings": sum(len(one["findings"]) for one in rows.values()),
        "targets": list(rows.values()),
    }
    file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
