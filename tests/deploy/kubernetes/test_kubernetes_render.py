"""Chart and kustomize render, are valid for two versions of Kubernetes, and say the same."""

import copy
import functools
import json
import re
from pathlib import Path

import pytest
import yaml
from generate_manifests import CHART, FOLDERS, KUSTOMIZE, ROOT, example, folders, rendered
from support.manifests import CHARTS, NO_HELM, kustomize, kustomized, of_kind, without_order

helm_python = pytest.importorskip("helm_python", reason=NO_HELM)
jsonschema = pytest.importorskip("jsonschema", reason=NO_HELM)
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=NO_HELM)

# It reads megabytes of definitions for every object.
utils = kubernetes_validate.utils
utils.schema_contents = functools.cache(utils.schema_contents)
OLDEST = "1.33"
NEWEST = kubernetes_validate.latest_version().rpartition(".")[0]
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")}
# Bases and components of kustomize, and the values that say the same to the chart.
MODELS = {key: value for key, value in example("production").items() if key in ("models", "redis")}
# With a claim, the trainer asks for no GPU of its own.
CLAIMED = {"limits": {"cpu": "8", "memory": "32Gi"}}
JOB = example("job") | {"trainer": example("job")["trainer"] | {"resources": CLAIMED}}
SAME = {
    "overlays/production": example("production"),
    **{name: example(of) for name, (of, _) in FOLDERS.items() if not name.startswith("components/")},
    "shared + gpu-own": example("gpu-own"),
    "shared + gpu-mig": example("gpu-mig"),
    "shared + gpu-mps": example("gpu-mps"),
    "shared + models + redis": MODELS,
    "shared + tls": {"tls": {"secret": "selector-tls"}},
    "job + gpu-dra": JOB | {"gpu": example("gpu-dra")["gpu"]},
    "job + gpu-dra-mps": JOB | {"gpu": example("gpu-dra-mps")["gpu"]},
}  # fmt: skip


def check_jobs_of(one: dict, version: str) -> None:
    """JobSet, TrainingRuntime and TrainJob: by Kubeflow's own classes, and the jobs in them as Jobs."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason=NO_HELM)
    names = {"JobSet": "JobsetV1alpha2JobSet"}
    of_class = getattr(models, names.get(one["kind"], f"TrainerV1alpha1{one['kind']}"))
    one = copy.deepcopy(one)
    spec = one["spec"]["template"]["spec"] if one["kind"] == "TrainingRuntime" else one["spec"]
    for job in spec.get("replicatedJobs", []):
        inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        kubernetes_validate.validate(inner | {"spec": job["template"].pop("spec")}, version, strict=True)
    # These classes drop what they do not know, so what comes out must be what went in.
    assert of_class.from_dict(one).to_dict() == one


def check_valid(one: dict, version: str) -> None:
    """Raises where an object is not of its kind. Kinds that nothing here knows raise too."""
    if one["kind"] in SCHEMAS:
        jsonschema.validate(one, SCHEMAS[one["kind"]])
    elif one["kind"] in ("JobSet", "TrainingRuntime", "TrainJob"):
        check_jobs_of(one, version)
    else:
        kubernetes_validate.validate(one, version, strict=True)


def of_version(values: dict, version: str) -> dict:
    """1.33 knows ResourceClaims as v1beta2."""
    if version != "1.33" or values.get("gpu", {}).get("mode") != "dra":
        return values
    return values | {"gpu": values["gpu"] | {"apiVersion": "resource.k8s.io/v1beta2"}}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", CHARTS)
def test_the_charts_objects_are_valid(name, version):
    found = rendered(of_version(CHARTS[name], version))
    assert len(found) >= 2
    for one in found:
        check_valid(one, version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_objects_of_kustomize_are_valid(version):
    for one in kustomize(KUSTOMIZE / "overlays" / "production"):
        check_valid(one, version)


def test_the_pod_monitor_in_the_docs_is_valid():
    [text] = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "monitoring.md").read_text(), re.MULTILINE | re.DOTALL)
    check_valid(yaml.safe_load(text), NEWEST)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replica"), 1),
        ("Deployment", ("spec", "replicas"), "one"),
        ("JobSet", ("spec", "replicas"), 1),
        ("JobSet", ("spec", "network", "subdomain"), 7),
        ("TrainJob", ("spec", "trainer", "nodes"), 1),
        ("PodMonitor", ("spec", "endpoints"), []),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "soon"),
        ("NetworkPolicy", ("kind",), "NetworkPolicies"),
    ],
)
def test_the_validators_refuse_what_is_wrong(kind, path, value):
    values = {"JobSet": example("jobset"), "TrainJob": example("trainjob")}.get(kind, example("production"))
    [one] = [o for o in rendered(values) if o["kind"] == kind and o["metadata"]["name"] == "selector"]
    check_valid(one, NEWEST)
    *way, last = path
    inner = one
    for key in way:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(
        (AssertionError, ValueError, jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError)
    ):
        check_valid(one, NEWEST)


@pytest.mark.parametrize("name", SAME)
def test_kustomize_and_the_chart_say_the_same(name, tmp_path):
    base, *components = name.split(" + ")
    mine = (
        kustomized(tmp_path, base, [f"components/{one}" for one in components])
        if components
        else kustomize(KUSTOMIZE / base)
    )
    theirs = rendered(SAME[name])

    def table(objects):
        named = {(one["kind"], one["metadata"]["name"]): without_order(one) for one in objects}
        for one in named.values():
            one["metadata"].pop("namespace", None)  # helm's is not in the objects
        return named

    assert table(mine) == table(theirs)


def test_what_is_generated_is_current():
    for file, text in folders():
        assert file.read_text() == text, f"{file.relative_to(ROOT)}: make manifests"


@pytest.mark.parametrize("name", CHARTS)
def test_helm_finds_no_fault(name):
    report = helm_python.lint(CHART, CHARTS[name], strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_alerts_and_dashboard_are_those_of_deploy_monitoring_in_a_package_too(tmp_path):
    archive = helm_python.package(CHART, destination=tmp_path)
    found = rendered(example("production"), chart=archive)
    [rule] = of_kind(found, "PrometheusRule")
    monitoring = ROOT / "deploy" / "monitoring"
    assert rule["spec"] == yaml.safe_load((monitoring / "alerts.yaml").read_text())
    [dashboard] = of_kind(found, "ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["selector.json"]) == json.loads((monitoring / "dashboard.json").read_text())


def test_the_chart_waits_as_long_as_a_start_may_take_before_it_raises_an_alert():
    [rule] = of_kind(rendered({"prometheusRule": True, "startupSeconds": 1800}), "PrometheusRule")
    waits = {one["alert"]: one.get("for") for one in rule["spec"]["groups"][0]["rules"]}
    assert waits["SelectorNotStarted"] == "2400s"
    plain = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert waits | {"SelectorNotStarted": "900s"} == {one["alert"]: one.get("for") for one in plain}


def test_two_releases_in_a_namespace_share_no_name():
    values = example("production")
    first, second = (
        {(o["kind"], o["metadata"]["name"]) for o in rendered(values, name)} for name in ("run-1", "run-2")
    )
    assert len(first) == len(second) > 8
    assert not first & second
    for one in rendered(values, "run-1"):
        assert "run-2" not in json.dumps(one)
