"""Servers that tests of several files share."""

import logging

import pytest
from selector_tools import cli
from support.processes import one_line

LIMITS = {
    "max_payload_bytes": 1 << 20,
    "max_super_batch": 200,
    "max_width": 64,
    "max_chunks": 32,
    "max_image_bytes": 20_000,
    "max_image_pixels": 4096,
    "max_text_bytes": 100,
    "max_pending_requests": 1,
    "max_inflight_bytes": 2 << 20,
    "receive_seconds": 1.0,
    "run": "the-run",
}


@pytest.fixture(scope="module")
def limited(start_sidecars, bundles):
    """A server with both models and small limits."""
    with start_sidecars() as start:
        yield start(bundles.flags | LIMITS)


@pytest.fixture(scope="module")
def quick(start_sidecars):
    """A sidecar without models whose ranks wait for each other 1.5 s: for tests in which one may never come."""
    with start_sidecars() as start:
        yield start({"group_seconds": 1.5})


@pytest.fixture(scope="module")
def patient(start_sidecars):
    """A sidecar without models whose ranks wait for each other longer than any client waits for it: what ends a wait
    here did not come from its length."""
    with start_sidecars() as start:
        yield start({"group_seconds": 600, "max_super_batch": 400, "max_pending_requests": 40})


@pytest.fixture
def serve(capsys, monkeypatch):
    """Runs `selector serve` in this process, where only mistakes end it: exit status and its one line."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def run(*arguments, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(f"SELECTOR_{name.upper()}", value)
        try:
            status = cli.main(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        finally:
            root.handlers[:] = before[0]
            root.setLevel(before[1])
        assert status == 2
        return one_line(capsys.readouterr().err)

    return run
