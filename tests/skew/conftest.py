"""The last release, to be run by processes of their own: the tests' process has only what is here now."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("selector_proto", "selector_client", "selector_server", "selector_tools")
[WHEEL] = (Path(__file__).parent / "released").glob("*.whl")


@pytest.fixture(scope="session")
def environments(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The environment of a process that imports the packages of a side, `released` or `current`; both have the same
    libraries."""
    folder = tmp_path_factory.mktemp("released")
    zipfile.ZipFile(WHEEL).extractall(folder)
    # Without the safe path, Python would look in the working directory first, which has the packages as they are now.
    sides = {"released": {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}, "current": {}}
    code = f"import {', '.join(PACKAGES)}; print(*[m.__file__ for m in ({', '.join(PACKAGES)})], sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=sides["released"], capture_output=True, text=True, timeout=60
    )
    assert [Path(file).parent for file in done.stdout.split()] == [folder / name for name in PACKAGES], done.stderr
    return sides
