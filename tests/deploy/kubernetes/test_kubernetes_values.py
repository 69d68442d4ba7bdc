"""What the chart refuses, and that it says which value, before anything reaches a cluster."""

import json

import pytest
from generate_manifests import SCHEMA, example, rendered, schema
from support.manifests import NO_HELM, environment, of_kind, sidecars


def test_the_schema_of_settings_is_the_servers():
    assert SCHEMA.read_text() == schema(), "make manifests"
    properties = json.loads(SCHEMA.read_text())["properties"]["settings"]["properties"]
    assert {"run", "max_super_batch", "log_level", "when_stale"} <= properties.keys()
    assert not {"listen", "learner", "redis", "redis_password_file", "peers", "drain_seconds"} & properties.keys()
    assert all(field["description"] for field in properties.values())


JOB = example("job")
BAD = [
    ({"topology": "daemonset"}, "/topology"),
    ({"topologi": "shared"}, "topologi"),
    ({"replicas": -1}, "/replicas"),
    ({"replicas": "2"}, "/replicas"),
    ({"image": {"digest": "sha256:123"}}, "/image/digest"),
    ({"settings": {"max_superbatch": 1}}, "max_superbatch"),
    ({"settings": {"max_super_batch": 0}}, "/settings/max_super_batch"),
    ({"settings": {"when_stale": "ignore"}}, "/settings/when_stale"),
    ({"settings": {"listen": "0.0.0.0:1"}}, "listen"),
    ({"redis": {"mode": "sentinel"}}, "/redis/mode"),
    ({"redis": {"mode": "deploy"}}, "models.learner: empty; redis.mode deploy"),
    ({"redis": {"files": ["id_rsa"]}}, "/redis/files/0"),
    ({"models": {"learner": "learner"}}, "models.volume: empty"),
    ({"models": {"volume": {"emptyDir": {}}, "learner": "../etc"}}, "/models/learner"),
    ({"models": {"volume": {"emptyDir": {}, "hostPath": {}}}}, "/models/volume"),
    ({"gpu": {"mode": "timeslicing"}}, "/gpu/mode"),
    ({"gpu": {"resource": "gpu"}}, "/gpu/resource"),
    ({"gpu": {"apiVersion": "resource.k8s.io/v1alpha3"}}, "/gpu/apiVersion"),
    ({"gpu": {"mps": {"threadPercentage": 150}}}, "/gpu/mps/threadPercentage"),
    ({"resources": {"limits": {"memory": "8GB"}}}, "/resources/limits/memory"),
    ({"sharedMemory": {"size": "1 Gi"}}, "/sharedMemory/size"),
    ({"cache": {"gibibytes": 8}}, "models.reference: empty; cache.gibibytes 8"),
    ({"topology": "job"}, "trainer.image: empty"),
    ({"peers": {"enabled": True}}, "peers.enabled: needs topology"),
    (JOB | {"peers": {"enabled": True}}, "trainer.pods of 2 or more, not job and 1"),
    (JOB | {"trainer": JOB["trainer"] | {"pods": 0}}, "/trainer/pods"),
    (JOB | {"trainer": JOB["trainer"] | {"metricsPort": 9464}}, "trainer.metricsPort: 9464; the sidecar"),
    ({"peers": {"port": 99999}}, "/peers/port"),
    ({"tls": {"clientCa": True}}, "tls.secret: empty"),
    ({"tokens": {"admin": True}}, "tokens.secret: empty"),
    ({"tokens": {"secret": "tokens"}}, "tls.secret: empty; tokens.secret"),
    # The trainer beside it would know neither, and take uniform batches in a pod that is green.
    (JOB | {"tls": {"secret": "tls"}}, "tls.secret: set; only topology shared"),
    (example("jobset") | {"tokens": {"secret": "tokens"}}, "tokens.secret: set; only topology shared"),
    ({"drainSeconds": 0}, "/drainSeconds"),
    ({"networkPolicy": {"clients": []}}, "/networkPolicy/clients"),
    ({"podLabels": {"a": 1}}, "/podLabels/a"),
    ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "podLabels: app.kubernetes.io/name; that one is the chart's"),
    ({"hostNetwork": True}, "hostNetwork"),
    ({"securityContext": {"runAsUser": 1000}}, "securityContext"),
    # Values that would change nothing, so that a sidecar runs which is not the one that was meant.
    ({"trainer": {"image": "trainer:1"}}, "trainer.image: set; only topology job"),
    (JOB | {"replicas": 2}, "replicas: set; only topology shared"),
    ({"listen": "unix"}, "listen: set; only topology job"),
    ({"cache": {"volume": {"emptyDir": {}}}}, "cache.volume: set; only a cache of cache.gibibytes"),
    ({"redis": {"files": ["password"]}}, "redis.files: set; only redis.mode existing"),
    ({"gpu": {"sharing": "MPS"}}, "gpu.sharing: set; only gpu.mode dra"),
    ({"gpu": {"resource": "nvidia.com/mig-1g.10gb"}}, "gpu.resource: set; only gpu.mode plugin"),
    ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "resources.limits: nvidia.com/gpu; gpu.mode plugin"),
    (example("job-peers") | {"peers": {"enabled": True, "port": 50053}}, "peers.port: 50053; the sidecar has"),
    (
        JOB | {"trainer": JOB["trainer"] | {"volumes": [{"name": "tmp", "emptyDir": {}}]}},
        "trainer.volumes: tmp; the chart has a volume of that name",
    ),
    (
        JOB | {"trainer": JOB["trainer"] | {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}},
        "trainer.volumeMounts: data; there is no such volume",
    ),
]


@pytest.mark.parametrize(("values", "says"), BAD, ids=[says for _, says in BAD])
def test_a_bad_value_is_named(values, says):
    helm_python = pytest.importorskip("helm_python", reason=NO_HELM)
    with pytest.raises(helm_python.HelmError) as raised:
        rendered(values)
    assert says in str(raised.value)


@pytest.mark.parametrize("name", ["7b-run", "my.run", "a" * 42])
def test_a_release_whose_objects_could_not_be_called_so_is_refused(name):
    helm_python = pytest.importorskip("helm_python", reason=NO_HELM)
    with pytest.raises(helm_python.HelmError, match=f"release name: {name}; objects would be called {name}-selector"):
        rendered({}, name)
    rendered({}, "a" * 41)


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({}, []),
        ({"networkPolicy": {"egress": [{"ports": [{"port": 4318}]}]}}, [53, 53, 4318]),
        (example("redis-existing"), [53, 53, 6379, 26379]),
        (
            example("redis-existing") | {"networkPolicy": {"egress": [{"ports": [{"port": 4318}]}]}},
            [53, 53, 4318, 6379, 26379],
        ),
    ],
)
def test_a_shared_sidecar_reaches_what_it_is_set_up_for(more, allowed):
    pytest.importorskip("helm_python", reason=NO_HELM)
    [policy] = of_kind(rendered(more), "NetworkPolicy")
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == allowed


def test_large_numbers_and_fractions_reach_the_server_as_they_are():
    pytest.importorskip("helm_python", reason=NO_HELM)
    settings = {"max_weights_bytes": 17179869184, "weights_poll_seconds": 0.5, "sampler_fused": False, "run": "7"}
    [pod] = sidecars(rendered({"settings": settings, "drainSeconds": 90.5}))
    values = environment(pod.selector)
    assert values["SELECTOR_MAX_WEIGHTS_BYTES"] == "17179869184"
    assert values["SELECTOR_WEIGHTS_POLL_SECONDS"] == "0.5"
    assert values["SELECTOR_SAMPLER_FUSED"] == "false"
    assert values["SELECTOR_RUN"] == "7"
    assert values["SELECTOR_MAX_PAYLOAD_BYTES"] == "1073741824"
    assert pod.spec["terminationGracePeriodSeconds"] == 91 + 20
