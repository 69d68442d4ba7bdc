"""A trainer with its sidecar, and a sidecar with settings of its own."""

import pytest
from support.processes import free_port
from support.redis_servers import on_free_port, valkey_server
from support.redis_ways import SERVERS, Server, Way
from support.runs import POLL, Run
from support.trainers import Trainer


@pytest.fixture(scope="session")
def shared_trainer(start_sidecars, bundles, redis_url):
    with start_sidecars() as start:
        flags = {"redis": redis_url, "run": "shared", "weights_poll_seconds": 0.05}
        trainer = Trainer(start(bundles.flags | flags), bundles, redis_url, "shared")
        yield trainer
        trainer.publisher.close()


@pytest.fixture
def trainer(shared_trainer):
    """Without a pin, before and after."""
    yield shared_trainer
    shared_trainer.unpin()


@pytest.fixture(scope="session")
def admin_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def strict(start_sidecars, bundles, admin_address):
    """A sidecar without a source of weights whose own settings refuse, with an address for its admin service."""
    with start_sidecars() as start:
        yield start(bundles.flags | {"when_stale": "refuse", "max_weights_lag_steps": 3, "admin_listen": admin_address})


@pytest.fixture(scope="module")
def run(request, start_sidecars, bundles, redis_url):
    name = request.module.__name__.rpartition(".")[2]
    with start_sidecars() as start:
        server = start(bundles.flags | POLL | {"redis": redis_url, "run": name})
        run = Run(name, redis_url, server, bundles)
        yield run
        run.publisher.close()


@pytest.fixture
def start_valkey():
    """Starts Redis-protocol servers at a port; stops those that are left."""
    servers = []

    def start(port):
        servers.append(valkey_server(port))
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


@pytest.fixture
def start(tmp_path):
    """Starts servers of Redis with lines of their configuration."""
    servers = []

    def one(*lines, program="valkey") -> Server:
        folder, found = tmp_path / f"server{len(servers)}", SERVERS[program]()
        servers.append(on_free_port(lambda port: Server(folder, found, lines, port)))
        return servers[-1]

    yield one
    for server in servers:
        server.program.kill()


@pytest.fixture
def way(run_name):
    """Begins ways from a publisher to a follower."""
    ways = []

    def begin(*urls, **options) -> Way:
        ways.append(Way(urls[0], run_name, *urls[1:], **options))
        return ways[-1]

    yield begin
    for one in ways:
        one.close()
