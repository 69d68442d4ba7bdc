"""docs/kubernetes.md, followed from the top: what a command installs is complete at that place."""

import re
import shlex
from itertools import pairwise

import pytest
import yaml
from generate_manifests import ROOT, example, rendered
from support.manifests import NO_HELM, pods, sidecars

pytest.importorskip("helm_python", reason=NO_HELM)
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def commands() -> list[list[str]]:
    """Of all shell blocks, in order, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def values(words: list[str]) -> dict:
    """What `-f` and `--set` of a helm command say."""
    options = list(pairwise(words))
    files = [value for name, value in options if name == "-f"]
    found = yaml.safe_load((ROOT / files[0]).read_text()) if files else {}
    for setting in (value for name, value in options if name == "--set"):
        path, _, value = setting.partition("=")
        *folders, last = path.split(".")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return found


def test_every_installation_has_its_image_and_the_secrets_made_before_it():
    secrets, installed = set(), 0
    for words in commands():
        if "secret" in words:
            secrets.add(words[words.index("secret") + 2])
        if words[:2] not in (["helm", "install"], ["helm", "upgrade"]):
            continue
        installed += 1
        for pod in pods(rendered(values(words), words[2])):
            images = {one["name"]: one["image"] for one in pod.containers}
            assert images.get("selector", "registry.example/").startswith("registry.example/"), words
            wanted = {volume["secret"]["secretName"] for volume in pod.spec["volumes"] if "secret" in volume}
            assert wanted <= secrets, words
    assert installed == 3


def test_a_pod_has_the_time_to_end_that_the_page_says():
    [margin] = re.findall(r"`trainer.graceSeconds`, then `drainSeconds`, and (\d+) s more", PAGE)
    [pod] = sidecars(rendered(example("job") | {"drainSeconds": 40}))
    assert pod.spec["terminationGracePeriodSeconds"] == 30 + 40 + int(margin)


def test_the_secrets_have_the_keys_that_are_mounted():
    made = {words[words.index("secret") + 2]: words for words in commands() if "secret" in words}
    assert "--from-literal=password=$(openssl rand -hex 24)" in made["selector-redis"]
    assert made["selector-tls"][made["selector-tls"].index("secret") + 1] == "tls"
    assert {"--from-file=token", "--from-file=admin-token"} <= set(made["selector-tokens"])
