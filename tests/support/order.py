"""The order in which files of tests begin: a pytest plugin.

Each file is one worker's. The longest begin first, so that at the end no worker is left alone with one of them.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Seconds of the files that take longest, by themselves on a free core; those of the others matter little.
SECONDS = {
    "tests/examples/test_examples.py": 115,
    "tests/tools/test_bench_weights.py": 36,
    "tests/test_package.py": 25,
    "tests/tools/test_serving.py": 24,
    "tests/tools/test_bench_load.py": 20,
    "tests/skew/test_skew.py": 12,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Other files, and the tests of each file, stay in their order."""
    items.sort(key=lambda item: -SECONDS.get(item.nodeid.partition("::")[0], 0))
