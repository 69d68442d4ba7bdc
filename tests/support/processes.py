"""Real processes: sidecars on free ports that never outlive the tests."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from selector_tools.processes import ends_with_parent

from support.forked import ForkedCommand
from support.wire import Request, some_losses

READY = "selector.v1.SelectorService"
# Ports that some process of tests took lately: one empty file each.
PORTS = Path(tempfile.gettempdir()) / f"selector-test-ports-{os.getuid()}"
RESERVED_SECONDS = 300


def spawn(*arguments, program=sys.executable, env=None, **options) -> subprocess.Popen:
    """This Python, or another program's path, with `arguments`; it dies with us. `env` is added to the environment,
    without SELECTOR_*."""
    command = [*ends_with_parent(signal.SIGKILL), program, *map(str, arguments)]
    return subprocess.Popen(command, env=_environment() | (env or {}), **options)


def _environment() -> dict[str, str]:
    """Ours, without the settings of a sidecar."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SELECTOR_")}


def _start(arguments, env, log: Path, new) -> "subprocess.Popen | ForkedCommand":
    """The `selector` command, its output appended to a log."""
    if not new:
        return ForkedCommand(arguments, env, log)
    with log.open("ab") as stream:
        return spawn("-m", "selector_tools.cli", *arguments, env=env, stdout=stream, stderr=stream)


def _serve(flags) -> list[str]:
    """The arguments of the `selector` command."""
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    return ["serve", *(part for pair in pairs for part in pair)]


def run_serve(flags, *, new=False) -> tuple[int, str]:
    """Exit status and output of a `selector serve` that is expected to end by itself; it is a new Python if `new` says
    so."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = _start(_serve(flags), _environment(), log, new)
        try:
            return process.wait(60), log.read_text()
        finally:
            process.kill()


def free_port(beside: int = 0) -> int:
    """A port that nothing listens on, below the range that outgoing connections take theirs from. Nobody else is given
    it for a while: between here and its use, tests of other processes would find it free, too. All this holds for the
    port that is `beside` higher as well."""
    while True:
        port = random.SystemRandom().randint(15_000, 32_000 - beside)
        if all(_reserve(one) and _nobody_listens(one) for one in {port, port + beside}):
            return port


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _reserve(port: int) -> bool:
    """Whether the port is this process's now; it is not if another took it lately."""
    PORTS.mkdir(exist_ok=True)
    taken = PORTS / str(port)
    with suppress(FileNotFoundError):
        if time.time() - taken.stat().st_mtime > RESERVED_SECONDS:
            taken.unlink()
    try:
        taken.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def listens(port) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Sidecar:
    """`selector serve` as a process of its own; `dial(address)` opens a channel to it. It is a new Python if `new` says
    so; otherwise it is forked from one."""

    def __init__(self, log: Path, flags=None, *, env=None, port=None, dial=grpc.insecure_channel, new=False) -> None:
        self._dial = dial
        self.port, self.metrics_port = port or free_port(), free_port()
        self.address, self.log = f"127.0.0.1:{self.port}", log
        addresses = {"listen": self.address, "metrics_listen": f"127.0.0.1:{self.metrics_port}"}
        self.started = time.time()
        arguments = _serve(addresses | {"threads": 2} | (flags or {}))
        self.process = _start(arguments, _environment() | (env or {}), log, new)
        self._channel: grpc.Channel | None = None

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = self._dial(self.address)
        return self._channel

    @property
    def stub(self) -> rpc.SelectorServiceStub:
        return rpc.SelectorServiceStub(self.channel)

    def wait_healthy(self, name=READY, seconds=60) -> None:
        # A channel opened before the server listens may take seconds to find it.
        eventually(lambda: listens(self.port), seconds, lambda: self.text, self.must_live)
        eventually(lambda: self.health(name) == "SERVING", seconds, lambda: self.text, self.must_live)

    def must_live(self) -> None:
        assert self.process.poll() is None, f"the sidecar ended with {self.process.returncode}:\n{self.text}"

    def health(self, name=READY) -> str:
        """Name of the health status, or of the error's code."""
        request = health_pb2.HealthCheckRequest(service=name)
        try:
            reply = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=5)
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    def select(self, request: Request, timeout=30) -> pb.SelectResponse:
        return self.stub.Select(iter(request.messages()), timeout=timeout)

    def refuse(self, request, timeout=30) -> grpc.RpcError:
        """The error that a request (a Request, or its messages) must be answered with."""
        messages = request.messages() if isinstance(request, Request) else request
        try:
            reply = self.stub.Select(iter(messages), timeout=timeout)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"the request was answered: {reply}")

    def status(self) -> pb.GetWeightsStatusResponse:
        return self.stub.GetWeightsStatus(pb.GetWeightsStatusRequest(), timeout=10)

    def info(self) -> pb.GetServerInfoResponse:
        return self.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)

    def metrics(self) -> "Metrics":
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            return Metrics(reply.read().decode())

    def pending(self) -> float:
        return self.metrics()("selector_pending_requests")

    def wait_pending(self, count) -> None:
        eventually(lambda: self.pending() == count)

    @property
    def text(self) -> str:
        """Everything the process has printed."""
        return self.log.read_text()

    def signal(self, number) -> None:
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Closes our connection: a draining server waits for an idle one up to 5 s, until it says goodbye."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def stop(self) -> None:
        self.hang_up()
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)


class Metrics:
    """What /metrics said, parsed by Prometheus's own parser."""

    def __init__(self, text) -> None:
        families = text_string_to_metric_families(text)
        self._values = {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}

    def __call__(self, name, **labels) -> float | None:
        """A sample's value, None if there is none of that name and labels."""
        return self._values.get((name, frozenset(labels.items())))


class SlowClient:
    """Sends a request's header and then nothing, until `finish` or `leave`. Holds a permit of the server."""

    def __init__(self, server, request=None, timeout=30):
        self._go_on = threading.Event()
        self._messages = (request or some_losses()).messages()
        self.call = server.stub.Select.future(self._slowly(), timeout=timeout)

    def _slowly(self):
        first, *rest = self._messages
        yield pb.SelectRequest(selection=first.selection)
        self._go_on.wait(60)
        yield pb.SelectRequest(payload=first.payload)
        yield from rest

    def finish(self) -> pb.SelectResponse:
        self._go_on.set()
        return self.call.result(timeout=20)

    def leave(self) -> None:
        self.call.cancel()
        self._go_on.set()


def eventually(condition, seconds=20, message=lambda: "", meanwhile=lambda: None):
    """Waits for `condition` to become true and returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        meanwhile()
        assert time.monotonic() < deadline, f"not within {seconds} s: {message()}"
        time.sleep(0.05)
    return value


def one_line(stderr) -> str:
    """What a command that made a mistake printed: one line."""
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    return stderr
