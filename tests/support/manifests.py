"""Kubernetes objects of deploy/, as the chart and kustomize make them, and how to find one's way in them."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from generate_manifests import EXAMPLES, FOLDERS, KUSTOMIZE, example, rendered

from support import programs

Object = dict
HELM = importlib.util.find_spec("helm_python") is not None
NO_HELM = "needs helm_python, kubernetes_validate and kubectl: make deploy-test"
# Values beyond the examples, each with another part of the templates.
MORE = {
    "job-bare": {
        "topology": "job",
        "sharedMemory": {"enabled": False},
        "trainer": {"image": "registry.example/trainer:1"},
        "podDisruptionBudget": False,
        "networkPolicy": {"enabled": False},
        "prometheusRule": True,
    },
    "jobset-unix-gpu": example("jobset")
    | {"listen": "unix", "gpu": {"mode": "plugin"}, "peers": {"enabled": True, "port": 50154, "interface": "eth0"}},
    "trainjob-dra": example("trainjob")
    | {"gpu": {"mode": "dra"}, "podMonitor": True, "dashboard": True, "prometheusRule": True}
    | {"trainer": example("trainjob")["trainer"] | {"metricsPort": 9465}},
    "many": {
        "replicas": 3,
        "drainSeconds": 90.5,
        "startupSeconds": 1800,
        "image": {"repository": "registry.example/jest-selector", "digest": "sha256:" + "0" * 64},
        "settings": {"run": "my-run", "max_super_batch": 200000, "max_weights_bytes": 17179869184, "traces": "otlp"},
        "networkPolicy": {"egress": [{"ports": [{"port": 4318}], "to": [{"namespaceSelector": {}}]}]},
        "tls": {"secret": "tls-of-mine", "clientCa": True},
        "podLabels": {"team": "vision"},
        "podAnnotations": {"note": "x"},
        "nodeSelector": {"gpu": "l4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "pull"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
    },
}  # fmt: skip
CHARTS = {path.stem: example(path.stem) for path in sorted(EXAMPLES.glob("*.yaml"))} | MORE
BASES = [name for name in FOLDERS if not name.startswith("components/")]
SETS = [f"kustomize {name}" for name in BASES] + ([f"helm {name}" for name in CHARTS] if HELM else [])


@cache
def objects(name: str) -> list[Object]:
    """One of SETS. Do not change it."""
    tool, _, rest = name.partition(" ")
    if tool == "helm":
        return rendered(CHARTS[rest])
    return list(yaml.safe_load_all((KUSTOMIZE / rest / "objects.yaml").read_text()))


def kustomized(folder: Path, resource: str, components: list[str]) -> list[Object]:
    """What `kubectl kustomize` makes of a base and components of deploy/kustomize, in a new folder."""
    up = Path(os.path.relpath(KUSTOMIZE, folder))
    lines = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(up / resource)],
        "components": [str(up / component) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    return kustomize(folder)


def kustomize(folder: Path) -> list[Object]:
    kubectl = programs.required("kubectl", "deploy-test")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@dataclass(frozen=True)
class Pod:
    """A template of pods, and the kind and name of what makes them."""

    kind: str
    name: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return self.spec.get("initContainers", []) + self.spec["containers"]

    @property
    def selector(self) -> Object:
        """The sidecar's container; asks for exactly one."""
        [found] = [one for one in self.containers if one["name"] == "selector"]
        return found

    @property
    def trainer(self) -> Object | None:
        others = [one for one in self.containers if one["name"] in ("trainer", "node")]
        return others[0] if others else None


def pods(found: list[Object]) -> Iterator[Pod]:
    for one in found:
        spec = one.get("spec", {})
        if one["kind"] == "TrainingRuntime":
            spec = spec["template"]["spec"]
        for job in spec.get("replicatedJobs", [{"template": {"spec": spec}}]):
            template = job["template"]["spec"].get("template")
            if template and "containers" in template.get("spec", {}):
                name = one["metadata"]["name"]
                yield Pod(one["kind"], name, template["metadata"]["labels"], template["spec"])


def sidecars(found: list[Object]) -> list[Pod]:
    return [pod for pod in pods(found) if pod.labels["app.kubernetes.io/component"] in ("server", "trainer")]


def of_kind(found: list[Object], kind: str) -> list[Object]:
    return [one for one in found if one["kind"] == kind]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; those of this project use matchLabels and In."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return wanted.items() <= labels.items() and all(labels.get(one["key"]) in one["values"] for one in expressions)


def environment(container: Object) -> dict[str, str | None]:
    """Names and values; None for those that come from elsewhere."""
    return {one["name"]: one.get("value") for one in container.get("env", [])}


def without_order(found):
    """For comparing: lists whose items have names are told apart by them, not by their order."""
    if isinstance(found, dict):
        return {key: without_order(value) for key, value in found.items() if key != "app.kubernetes.io/managed-by"}
    if isinstance(found, list):
        items = [without_order(one) for one in found]
        if items and all(isinstance(one, dict) and "name" in one for one in items):
            return sorted(items, key=lambda one: (one["name"], str(one.get("mountPath"))))
        return items
    return found
