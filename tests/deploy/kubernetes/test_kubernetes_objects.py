"""What every set of rendered objects must be, whichever tool made it: the parts that no schema checks."""

import re
from pathlib import PurePosixPath

import pytest
from support.manifests import HELM, NO_HELM, SETS, Pod, environment, objects, of_kind, pods, selects, sidecars

from selector_server.config import Config, load

NAME = "app.kubernetes.io/name"
# Where the ranks of a training meet by default, in the network that the sidecar shares.
TORCHRUN = {29400, 29500}


@pytest.fixture(params=SETS)
def found(request):
    return objects(request.param)


def test_the_charts_objects_are_among_them():
    if not HELM:
        pytest.skip(NO_HELM)
    assert len(SETS) > 20


def test_there_is_one_workload_with_one_sidecar_and_no_two_objects_share_a_name(found):
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(names) == len(set(names))
    [pod] = sidecars(found)
    assert pod.selector["image"]


def test_every_selector_matches_pods(found):
    templates = list(pods(found))
    for one in of_kind(found, "Deployment"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
    chosen = [{"matchLabels": one["spec"]["selector"]} for one in of_kind(found, "Service")]
    chosen += [one["spec"]["podSelector"] for one in of_kind(found, "NetworkPolicy")]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        chosen += [one["spec"]["selector"] for one in of_kind(found, kind)]
    for policy in of_kind(found, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            peers = [peer["podSelector"] for peer in rule.get("from", []) + rule.get("to", []) if "podSelector" in peer]
            chosen += [peer for peer in peers if NAME in peer["matchLabels"]]
    for selector in chosen:
        assert sum(selects(selector, pod.labels) for pod in templates) == 1, selector


def opened(pod: Pod) -> dict[int, str]:
    """Ports of a pod by number."""
    ports = [port for one in pod.containers for port in one.get("ports", [])]
    numbers = {port["containerPort"]: port["name"] for port in ports}
    assert len(numbers) == len(set(numbers.values())) == len(ports)
    return numbers


def test_ports_agree_between_settings_containers_services_policies_and_monitors(found):
    [sidecar] = sidecars(found)
    numbers, values = opened(sidecar), environment(sidecar.selector)
    listening = {name: values[f"SELECTOR_{name.upper()}_LISTEN"].rpartition(":")[2] for name in ("health", "metrics")}
    if not values["SELECTOR_LISTEN"].startswith(("unix:", "127.")):
        listening["grpc"] = values["SELECTOR_LISTEN"].rpartition(":")[2]
    if peers := values.get("SELECTOR_PEERS"):
        listening["peers"] = peers.rpartition(":")[2]
        assert int(listening["peers"]) not in TORCHRUN
    if sidecar.trainer:
        listening |= {port["name"]: port["containerPort"] for port in sidecar.trainer.get("ports", [])}
    assert numbers == {int(port): name for name, port in listening.items()}
    for service in of_kind(found, "Service"):
        [pod] = [pod for pod in pods(found) if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        for port in service["spec"]["ports"]:
            assert opened(pod)[port["port"]] == port.get("targetPort", port["name"]) == port["name"]
    for policy in of_kind(found, "NetworkPolicy"):
        [pod] = [pod for pod in pods(found) if selects(policy["spec"]["podSelector"], pod.labels)]
        allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
        assert allowed <= opened(pod).keys()
        reached = ("grpc", "metrics", "trainer-metrics", "redis")
        assert {number for number, name in opened(pod).items() if name in reached} <= allowed
    for monitor in of_kind(found, "PodMonitor"):
        ends = [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]]
        assert ends == sorted(name for name in numbers.values() if name.endswith("metrics"))


def test_what_alerts_look_at_in_a_training_pod_is_scraped(found):
    [pod] = sidecars(found)
    if not (of_kind(found, "PodMonitor") and of_kind(found, "PrometheusRule") and pod.trainer):
        return
    scraped = {
        end["port"]: {one["targetLabel"]: one["replacement"] for one in end.get("relabelings", [])}
        for one in of_kind(found, "PodMonitor")
        for end in one["spec"]["podMetricsEndpoints"]
    }
    rules = [rule["expr"] for one in of_kind(found, "PrometheusRule") for rule in one["spec"]["groups"][0]["rules"]]
    names = {name for expression in rules for name in re.findall(r"selector_\w+", expression)}
    wanted = {"trainer-metrics" if name.startswith("selector_client_") else "metrics" for name in names}
    assert wanted == scraped.keys() <= set(opened(pod).values())
    # As in deploy/monitoring/prometheus.yaml.
    assert scraped == {"metrics": {}, "trainer-metrics": {"job": "trainer"}}


def test_a_sidecar_that_may_reach_others_may_find_them_by_their_names(found):
    for policy in of_kind(found, "NetworkPolicy"):
        ports = [port["port"] for rule in policy["spec"].get("egress", []) for port in rule.get("ports", [])]
        assert not ports or 53 in ports


def test_probes_ask_what_the_server_answers(found):
    from selector_server.rpc.server import READY

    [pod] = sidecars(found)
    probes = {name: pod.selector[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    asked = {name: probe["grpc"].get("service", "") for name, probe in probes.items()}
    assert asked == {"startup": READY, "readiness": READY, "liveness": ""}
    assert {opened(pod)[probe["grpc"]["port"]] for probe in probes.values()} == {"health"}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 300
    assert all(probe["timeoutSeconds"] <= probe["periodSeconds"] for probe in probes.values())


def test_every_setting_is_one_of_the_servers_and_has_a_value_that_it_takes(found):
    [pod] = sidecars(found)
    values = {
        name.removeprefix("SELECTOR_").lower(): value
        for name, value in environment(pod.selector).items()
        if name.startswith("SELECTOR_")
    }
    assert values.keys() <= Config.model_fields.keys()
    assert all(value != "" for value in values.values())
    assert {name for name, value in values.items() if value is None} <= {"redis", "peer_rank"}
    elsewhere = {"redis": "redis://host:6379/0", "peer_rank": "0"}
    # Files that are not on this machine; that they are mounted is another test's.
    files = {name for name in values if name.endswith("_file")}
    given = {name: elsewhere[name] if value is None else value for name, value in values.items()}
    config = load({name: value for name, value in given.items() if name not in files}, {}, None)
    assert config.metrics_listen == "[::]:9464"
    tools = environment(pod.selector).keys() - {f"SELECTOR_{name.upper()}" for name in values}
    assert tools <= {"GLOO_SOCKET_IFNAME"}


QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|[MGTP]|[KMGTP]i)?")
FACTORS = {"": 1, "m": 1e-3, "k": 1e3} | {u: 1000.0**n for n, u in enumerate("MGTP", 2)}
FACTORS |= {f"{u}i": 1024.0**n for n, u in enumerate("KMGTP", 1)}


def amount(quantity) -> float:
    match = QUANTITY.fullmatch(str(quantity))
    assert match, quantity
    return float(match[1]) * FACTORS[match[2] or ""]


def test_quantities_parse_and_requests_are_within_limits(found):
    for pod in pods(found):
        limits = 0.0
        for one in pod.containers:
            resources = one.get("resources", {})
            limit = {name: amount(value) for name, value in resources.get("limits", {}).items()}
            request = {name: amount(value) for name, value in resources.get("requests", {}).items()}
            assert all(value <= limit.get(name, value) for name, value in request.items())
            if one["name"] in ("selector", "redis"):
                assert {"cpu", "memory"} <= request.keys()
                assert "memory" in limit
            limits += limit.get("memory", 0)
        sizes = [v["emptyDir"] for v in pod.spec["volumes"] if "emptyDir" in v]
        assert all(amount(one["sizeLimit"]) > 0 for one in sizes)
        in_memory = sum(amount(one["sizeLimit"]) for one in sizes if one.get("medium") == "Memory")
        assert in_memory < limits / 2 or not in_memory
    [pod] = sidecars(found)
    memory = amount(pod.selector["resources"]["limits"]["memory"])
    payloads = float(environment(pod.selector)["SELECTOR_MAX_INFLIGHT_BYTES"])
    assert payloads <= memory / 2


def test_mounts_refer_to_volumes_and_files_of_settings_lie_in_them(found):
    for pod in pods(found):
        volumes = [volume["name"] for volume in pod.spec["volumes"]]
        assert len(volumes) == len(set(volumes))
        mounted = [mount["name"] for one in pod.containers for mount in one.get("volumeMounts", [])]
        assert set(mounted) == set(volumes)
        for one in pod.containers:
            paths = [PurePosixPath(mount["mountPath"]) for mount in one.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))
            for name, value in environment(one).items():
                path = PurePosixPath((value or "").removeprefix("unix:"))
                if path.is_absolute():
                    assert any(path == mount or mount in path.parents for mount in paths), (name, value)


def test_what_is_read_cannot_be_written_and_secrets_are_not_for_all(found):
    for pod in pods(found):
        sources = {volume["name"]: volume for volume in pod.spec["volumes"]}
        for one in pod.containers:
            for mount in one.get("volumeMounts", []):
                if "emptyDir" not in sources[mount["name"]]:
                    assert mount["readOnly"], mount
        assert all(v["secret"]["defaultMode"] in (0o440, 0o400) for v in sources.values() if "secret" in v)


def test_secrets_that_are_named_are_the_ones_in_the_docs_or_in_the_values(found):
    for pod in pods(found):
        names = {v["secret"]["secretName"] for v in pod.spec["volumes"] if "secret" in v}
        references = [
            source["valueFrom"]["secretKeyRef"]
            for one in pod.containers
            for source in one.get("env", [])
            if "secretKeyRef" in source.get("valueFrom", {})
        ]
        names |= {one["name"] for one in references}
        assert names <= {"selector-redis", "selector-tls", "selector-tokens", "weights-redis", "tls-of-mine"}
        assert {one["key"] for one in references} <= {"url", "password"}


def test_pods_fit_the_restricted_profile_and_more(found):
    allowed = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
        "secret",
    }  # fmt: skip
    for pod in pods(found):
        spec = pod.spec
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"])
        for one in pod.containers:
            context = one["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsUser"] != 0
            assert not {"privileged", "procMount", "seccompProfile", "seLinuxOptions"} & context.keys()
            assert context.get("runAsNonRoot", True) is True
            assert all("hostPort" not in port for port in one.get("ports", []))
            if one["name"] in ("selector", "redis"):
                assert context["readOnlyRootFilesystem"] is True


def test_a_pod_gets_longer_to_end_than_the_sidecar_takes(found):
    [pod] = sidecars(found)
    drain = float(environment(pod.selector)["SELECTOR_DRAIN_SECONDS"])
    trainers = 30 if pod.trainer else 0
    assert pod.spec["terminationGracePeriodSeconds"] >= trainers + drain + 5


def test_beside_a_trainer_the_sidecar_is_native_and_reached_only_from_inside(found):
    [pod] = sidecars(found)
    if pod.trainer is None:
        assert pod.selector in pod.spec["containers"]
        return
    assert pod.spec["initContainers"] == [pod.selector]
    assert pod.selector["restartPolicy"] == "Always"
    address = environment(pod.trainer)["SELECTOR_ADDRESS"]
    assert address == environment(pod.selector)["SELECTOR_LISTEN"]
    assert address.startswith(("127.0.0.1:", "unix:/"))
    mine, theirs = (
        {(mount["name"], mount["mountPath"]) for mount in one.get("volumeMounts", [])}
        for one in (pod.selector, pod.trainer)
    )
    if folder := environment(pod.selector).get("SELECTOR_SHARED_MEMORY_DIR"):
        [volume] = [v for v in pod.spec["volumes"] if v["name"] == "shared-memory"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert ("shared-memory", folder) in mine & theirs
    if address.startswith("unix:"):
        assert ("socket", "/selector-run") in mine & theirs
    redis = environment(pod.selector).keys() & {"SELECTOR_REDIS"}
    assert bool(redis) == ("REDIS_URL" in environment(pod.trainer))


def test_a_gpu_is_asked_for_in_one_way(found):
    [pod] = sidecars(found)
    limits = [one.get("resources", {}).get("limits", {}).keys() for one in pod.containers]
    devices = [{name for name in names if "/" in name} for names in limits]
    claims = [one.get("resources", {}).get("claims", []) for one in pod.containers]
    device = environment(pod.selector)["SELECTOR_DEVICE"]
    has = bool(pod.selector["resources"].get("claims")) or any("/" in n for n in pod.selector["resources"]["limits"])
    assert device == ("cuda:0" if has else "cpu")
    if any(claims):
        assert all(claim == [{"name": "gpu"}] for claim in claims)
        [template] = of_kind(found, "ResourceClaimTemplate")
        assert pod.spec["resourceClaims"] == [
            {"name": "gpu", "resourceClaimTemplateName": template["metadata"]["name"]}
        ]
    else:
        assert not of_kind(found, "ResourceClaimTemplate")
    if has and pod.kind == "Deployment":  # the old pod holds the device that the new one waits for
        [one] = [one for one in of_kind(found, "Deployment") if one["metadata"]["name"] == pod.name]
        assert one["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert devices


def test_peers_are_as_many_as_pods_and_find_the_first_by_its_name(found):
    [pod] = sidecars(found)
    values = environment(pod.selector)
    if "SELECTOR_PEERS" not in values:
        return
    host, _, domain = values["SELECTOR_PEERS"].removeprefix("tcp://").rpartition(":")[0].partition(".")
    [workload] = [one for one in found if one["kind"] == pod.kind]
    if pod.kind == "Job":
        [service] = [one for one in of_kind(found, "Service") if one["metadata"]["name"] == domain]
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["clusterIP"] == "None"
        assert pod.spec["subdomain"] == domain
        assert host == f"{pod.name}-0"
        job = workload["spec"]
    else:  # JobSet makes the Service, named as itself
        spec = workload["spec"] if pod.kind == "JobSet" else workload["spec"]["template"]["spec"]
        assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
        [replicated] = spec["replicatedJobs"]
        assert (host, domain) == (f"{pod.name}-{replicated['name']}-0-0", pod.name)
        job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(values["SELECTOR_PEER_COUNT"])
    [rank] = [one for one in pod.selector["env"] if one["name"] == "SELECTOR_PEER_RANK"]
    assert "batch.kubernetes.io/job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]


def test_a_trainjob_runs_the_runtime_beside_it(found):
    for job in of_kind(found, "TrainJob"):
        [runtime] = of_kind(found, "TrainingRuntime")
        assert job["spec"]["runtimeRef"] == {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "TrainingRuntime",
            "name": runtime["metadata"]["name"],
        }
        assert job["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"]
        [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
        assert replicated["name"] == container["name"] == "node"  # what Kubeflow's TrainJob fills in


def test_training_pods_are_kept_from_eviction_by_a_number(found):
    """A budget for pods of a Job takes nothing but a number."""
    for budget in of_kind(found, "PodDisruptionBudget"):
        [pod] = sidecars(found)
        spec = {key: value for key, value in budget["spec"].items() if key != "selector"}
        assert spec == {"maxUnavailable": 1} if pod.trainer is None else isinstance(spec["minAvailable"], int)
