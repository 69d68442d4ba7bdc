#!/usr/bin/env python3
"""Tells what all runs of the tests did together: .ci/summary.py FOLDER.

FOLDER holds the reports that tests/support/report.py wrote, named NUMBER-VERB in the order of the runs. Of a verb that
ran twice, the second run had only the tests that failed in the first.
"""

import json
import sys
from collections import Counter
from pathlib import Path


def main(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda file: int(file.name.partition("-")[0]))
    runs = [(file.name.partition("-")[2], json.loads(file.read_text())) for file in files]
    print("\n--- SUMMARY OF ALL TESTS")
    seen: Counter[str] = Counter()
    failed: dict[tuple[str, str], str] = {}
    flaky: dict[tuple[str, str], str] = {}
    for verb, run in runs:
        again = " (once more, what failed)" if seen[verb] else ""
        counts = ", ".join(f"{len(run[kind])} {kind}" for kind in ("passed", "failed", "skipped"))
        print(f"{counts} in {run['seconds']:.0f} s: make {verb}{again}")
        seen[verb] += 1
        for name in run["passed"]:
            if (verb, name) in failed:
                flaky[verb, name] = failed.pop((verb, name))
        for name, why in run["failed"].items():
            failed.setdefault((verb, name), why)
    tell("FAILED AT FIRST AND PASSED ALONE", [f"{name} (make {verb}): {why}" for (verb, name), why in flaky.items()])
    tell("FAILED", [f"{name} (make {verb}): {why}" for (verb, name), why in failed.items()])
    left_out = skipped_everywhere([run for _, run in runs])
    reasons = Counter(left_out.values())
    tell("SKIPPED IN EVERY RUN", [f"{count:5}  {why}" for why, count in reasons.most_common()], len(left_out))


def skipped_everywhere(runs: list[dict]) -> dict[str, str]:
    """Names and reasons of what some run skipped and none ran. A file may be skipped as a whole."""
    ran = {name for run in runs for name in (*run["passed"], *run["failed"])}
    ran |= {name.partition("::")[0] for name in ran}
    return {name: why for run in runs for name, why in run["skipped"].items() if name not in ran}


def tell(title: str, lines: list[str], count: int | None = None) -> None:
    print(f"--- {title}: {len(lines) if count is None else count}")
    for line in lines:
        print(f"  {line}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
