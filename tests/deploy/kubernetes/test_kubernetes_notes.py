"""What the chart prints after an installation is true: its command works beside a sidecar that the chart sets up."""

import re
import shlex
import subprocess

import grpc
import pytest
from generate_manifests import ROOT, example, rendered, templates
from support.certificates import certificates
from support.manifests import NO_HELM, environment, sidecars
from support.processes import free_port, spawn
from support.redis_servers import needs

pytest.importorskip("helm_python", reason=NO_HELM)
# Without what this machine does not have.
PRODUCTION = example("production") | {"models": {}, "redis": {"mode": "none"}, "gpu": {"mode": "none"}}
JOB = example("unix-socket") | {"listen": "tcp", "sharedMemory": {"enabled": False}}
SETS = {"shared": example("shared"), "job": JOB, "production": PRODUCTION}


def command(notes: str) -> str:
    """The one that runs in the container."""
    [found] = re.findall(r"^ *kubectl .* exec .* -c selector -- (selector .*)$", notes, re.MULTILINE)
    return found


@pytest.fixture
def secrets(tmp_path):
    """The Secrets of production.yaml as they are mounted, below this folder."""
    needs("openssl")
    files = certificates(tmp_path)
    for name, source in (("tls.crt", "server.pem"), ("tls.key", "server.key")):
        (tmp_path / "tls").mkdir(exist_ok=True)
        (tmp_path / "tls" / name).write_bytes(files[source].read_bytes())
    (tmp_path / "tokens").mkdir()
    for name in ("token", "admin-token"):
        (tmp_path / "tokens" / name).write_text(name * 8)
    return tmp_path


@pytest.mark.parametrize("name", SETS)
def test_the_command_in_the_notes_works_in_the_container(name, sidecar, bundles, secrets):
    [pod] = sidecars(rendered(SETS[name]))
    moved = {"unix:/tmp/": f"unix:{secrets}/", "/etc/selector/": f"{secrets}/"}
    ports = {f":{port['containerPort']}": f":{free_port()}" for port in pod.selector["ports"]}

    def here(text: str) -> str:
        for old, new in moved.items():
            text = text.replace(old, new)
        return text

    def local(value: str) -> str:
        host, port = value.rpartition(":")[::2]
        return f"127.0.0.1{ports[f':{port}']}" if host == "[::]" else here(value)

    env = {key: local(value) for key, value in environment(pod.selector).items()}
    health = env["SELECTOR_HEALTH_LISTEN"]
    running = sidecar(bundles.flags, env=env, dial=lambda _: grpc.insecure_channel(health))
    wanted = here(command(templates(SETS[name])["NOTES.txt"]))
    for action in ("status", "history"):
        arguments = shlex.split(wanted.replace("weights status", f"weights {action}"))[1:]
        done = spawn("-m", "selector_tools.cli", *arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = done.communicate(timeout=60)[0].decode()
        assert done.returncode == 0, said + running.text


def test_the_docs_have_the_command_of_the_notes():
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert command(page) == command(templates(example("shared"))["NOTES.txt"])
    assert command(templates(PRODUCTION)["NOTES.txt"]).removeprefix(command(page)).strip() in page
