"""Fixtures: real bundles, a real Redis-protocol server, real sidecars."""

import itertools
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.made_once import made_once
from support.processes import Sidecar
from support.redis_servers import valkey_server

pytest_plugins = ["support.operators", "support.order", "support.report"]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, request) -> Callable[[str, Callable[[Path], object]], Path]:
    """shared_folder(name, make) is a folder that all workers share, and that make(folder) fills once."""
    base = tmp_path_factory.getbasetemp()
    everyones = base.parent if hasattr(request.config, "workerinput") else base
    everyones = Path(os.environ.get("TEST_SHARED_FOLDER", everyones))  # of several runs of the tests
    return lambda name, make: made_once(everyones / name, make)


@pytest.fixture(scope="session")
def bundles(shared_folder):
    """Learner and reference, exported once, and the torch modules that they came from. Tests leave them as they are."""
    from support.model import Models  # torch, which many tests do without

    # Its exporter logs thousands of lines, which would hide what a failing test says.
    logging.getLogger("torch.__trace").propagate = False
    return Models(shared_folder)


@pytest.fixture(scope="session")
def redis_url():
    """A Redis-protocol server that no test stops."""
    server = valkey_server()
    yield server.connection_url
    server.stop()


@pytest.fixture
def run_name() -> str:
    """A training run that no other test uses."""
    return f"run-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def start_sidecars(tmp_path_factory):
    """A context in which sidecar(flags, env=…, port=…, wait=…) starts processes; they are killed at its end."""
    folder, number = tmp_path_factory.mktemp("sidecars"), itertools.count()

    @contextmanager
    def context():
        started = []

        def start(flags=None, *, wait=True, **options) -> Sidecar:
            started.append(Sidecar(folder / f"{next(number)}.log", flags, **options))
            if wait:
                started[-1].wait_healthy()
            return started[-1]

        try:
            yield start
        finally:
            for one in started:
                one.stop()

    return context


@pytest.fixture
def sidecar(start_sidecars):
    """Starts sidecars that end with the test."""
    with start_sidecars() as start:
        yield start


@pytest.fixture
def forked_benchmarks(monkeypatch) -> None:
    """Sidecars and other processes of benchmarks are forked from one that has imported what they need."""
    from support.benchmarks import fork_processes

    fork_processes(monkeypatch)


@pytest.fixture(scope="session")
def server(start_sidecars, bundles) -> Sidecar:
    """A sidecar with both models and the default settings. Tests leave it as they find it."""
    with start_sidecars() as start:
        yield start(bundles.flags)


@pytest.fixture(scope="session")
def plain_server(start_sidecars) -> Sidecar:
    """A sidecar without models: embeddings and losses only. Tests leave it as they find it."""
    with start_sidecars() as start:
        yield start()
