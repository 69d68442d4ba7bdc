"""Real servers that the wheel's Valkey is not: with TLS, watched by Sentinels, in a cluster."""

from pathlib import Path

import redis

from support import programs
from support.processes import eventually, free_port, spawn


def needs(*names: str) -> None:
    """Skips the test without these programs, each of which comes in Debian's package of the same name."""
    for name in names:
        programs.optional(name, name)


class Program:
    """A server of Debian's Redis; it dies with us."""

    def __init__(self, folder: Path, program: str, lines: list[str]) -> None:
        folder.mkdir()
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

        eventually(answers, 20, self.log.read_text)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def tls_server(folder: Path, files: dict[str, Path], *lines, program="redis-server") -> tuple[Program, redis.Redis]:
    """A server that speaks TLS only, to those only whose certificate the authority signed; and such a client."""
    port, home = free_port(), files["ca.pem"].parent
    tls = ["port 0", f"tls-port {port}", "tls-replication yes", "tls-cluster yes", f"tls-ca-cert-file {home}/ca.pem"]
    tls += [f"tls-cert-file {home}/server.pem", f"tls-key-file {home}/server.key"]
    server = Program(folder, program, [*tls, *lines])
    where = {"ssl_ca_certs": files["ca.pem"], "ssl_certfile": files["client.pem"], "ssl_keyfile": files["client.key"]}
    client = redis.Redis(host="127.0.0.1", port=port, ssl=True, **{name: str(file) for name, file in where.items()})
    server.wait(client)
    return server, client


def watched_pair(folder: Path, password: str) -> tuple[dict[int, Program], int]:
    """Master and replica by their ports, and the port of a Sentinel with a password that watches them as `weights`."""
    master, replica, sentinel = free_port(), free_port(), free_port()
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
        eventually(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 30)
        client.close()
