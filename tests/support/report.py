"""What a run of the tests says at its end: a pytest plugin.

Everything that was skipped is listed by reason, so that a green run shows what it left out. Where the environment
variable TEST_REPORT names a file, the outcome of each test is written there as JSON, for `.ci/summary.py`.
"""

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import pytest

MOST_FILES = 3
REASON_CHARACTERS = 200
STARTED = pytest.StashKey[float]()


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):  # file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def failure(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
    return lines[0][:REASON_CHARACTERS] if lines else "no message"


def by_reason(skipped: dict[str, str]) -> list[str]:
    """A line for each reason, the commonest first: how many tests, the reason, and their files."""
    tests = defaultdict(list)
    for name, reason in skipped.items():
        tests[reason].append(name)
    lines = []
    for reason, names in sorted(tests.items(), key=lambda item: (-len(item[1]), item[0])):
        files = sorted({name.partition("::")[0] for name in names})
        more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
        lines.append(f"{len(names):5}  {reason}  [{', '.join(files[:MOST_FILES])}{more}]")
    return lines


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.monotonic()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    skipped = {report.nodeid: skip_reason(report) for report in stats.get("skipped", [])}
    if skipped:
        terminalreporter.section("skipped, by reason")
        for line in by_reason(skipped):
            terminalreporter.write_line(line)
    if path := os.environ.get("TEST_REPORT"):
        failed = {report.nodeid: failure(report) for kind in ("failed", "error") for report in stats.get(kind, [])}
        passed = [report.nodeid for report in stats.get("passed", [])]
        seconds = time.monotonic() - terminalreporter.config.stash[STARTED]
        report = {"seconds": seconds, "passed": passed, "failed": failed, "skipped": skipped}
        Path(path).write_text(json.dumps(report))
