"""Only the tests that start no sidecar, the quickest first: a pytest plugin of tools/mutants.py."""

import json
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """mutmut sees what a test reaches in its own process only. It writes how long each test took."""
    seconds = {}
    if (file := Path("mutmut-stats.json")).exists():
        seconds = json.loads(file.read_text())["duration_by_test"]
    there = [item for item in items if "start_sidecars" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in there])
    items[:] = sorted(there, key=lambda item: seconds.get(item.nodeid, 0))
