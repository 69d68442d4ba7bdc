"""Containers of the image under test, by the engine that `make image-test` names."""

import json
import os
import subprocess
import time
import uuid

import grpc

from support.processes import Sidecar, eventually, free_port

IMAGE = os.environ.get("SELECTOR_TEST_IMAGE", "")
RUNNER = os.environ.get("SELECTOR_TEST_RUNNER", "")
# As restricted as a cluster may run it.
RESTRICTED = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", "1g"]


def engine(*arguments, check=True, **options) -> subprocess.CompletedProcess:
    """Docker or podman; its output as text."""
    command = [RUNNER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done


class Container(Sidecar):
    """`selector serve` in a container whose ports are on the host's loopback address."""

    def __init__(self, *flags, **settings) -> None:
        self.name, self._channel, self._dial = f"selector-test-{uuid.uuid4().hex[:8]}", None, grpc.insecure_channel
        self.port, self.metrics_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        addresses = {"listen": f"0.0.0.0:{self.port}", "metrics_listen": f"0.0.0.0:{self.metrics_port}"}
        addresses["health_listen"] = f"127.0.0.1:{free_port()}"  # engines without networks share the host's
        published = [f"--publish=127.0.0.1:{port}:{port}" for port in (self.port, self.metrics_port)]
        given = [f"--env=SELECTOR_{name.upper()}={value}" for name, value in (addresses | settings).items()]
        self.started = time.monotonic()
        engine("run", "--detach", "--name", self.name, *RESTRICTED, *published, *given, *flags, IMAGE)

    def execute(self, *command, **options) -> subprocess.CompletedProcess:
        return engine("exec", "--interactive", self.name, *command, **options)

    def python(self, code) -> str:
        """What a program prints that runs inside."""
        return self.execute("python", "-", input=code).stdout

    def inspect(self) -> dict:
        return json.loads(engine("inspect", self.name).stdout)[0]

    @property
    def running(self) -> bool:
        return self.inspect()["State"]["Running"]

    def must_live(self) -> None:
        assert self.running, f"the container ended:\n{self.text}"

    @property
    def text(self) -> str:
        logs = engine("logs", self.name, check=False)
        return logs.stdout + logs.stderr

    def signal(self, number) -> None:
        engine("kill", "--signal", int(number), self.name)

    def exit_status(self, seconds=60) -> int:
        """Of its only process, once that has ended."""
        eventually(lambda: not self.running, seconds, lambda: self.text)
        return self.inspect()["State"]["ExitCode"]

    def stop(self) -> None:
        self.hang_up()
        engine("rm", "--force", "--volumes", self.name, check=False)
