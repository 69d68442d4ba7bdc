"""Every value of values.yaml as null and as another type: the chart refuses it by its name, or does without it."""

import copy

import pytest
import yaml
from generate_manifests import CHART, MAY_LACK, example, rendered
from support.manifests import NO_HELM

helm_python = pytest.importorskip("helm_python", reason=NO_HELM)

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
BASES = {"shared": {}, "job": example("job"), "production": example("production")}
# For each type of a default, what an operator may write instead.
WRONG = {
    str: (7, True, ["text"], {"a": "b"}),
    int: ("7", True, [7], {"a": 7}),
    bool: ("true", 1, [True], {"a": True}),
    list: ("text", 7, True, {"a": "b"}),
    dict: ("text", 7, True, ["text"]),
}


def values_of(tree: dict, way: tuple[str, ...] = ()):
    for name, default in tree.items():
        yield (*way, name), default
        if isinstance(default, dict):
            yield from values_of(default, (*way, name))


VALUES = dict(values_of(DEFAULTS))
by_name = {"argvalues": list(VALUES), "ids": [".".join(path) for path in VALUES]}


def changed(values: dict, path: tuple[str, ...], value) -> dict:
    """The values of a user who also writes this one."""
    values = copy.deepcopy(values)
    inner = values
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    return values


def outcome(values: dict):
    """The objects, or the error's text."""
    try:
        return rendered(values)
    except helm_python.HelmError as error:
        return str(error)


@pytest.mark.parametrize("path", **by_name)
def test_null(path):
    *folder, name = path
    for base in BASES.values():
        found = outcome(changed(base, path, None))
        if MAY_LACK & set(path):
            assert isinstance(found, list), found
        elif VALUES[path]:
            assert f"at '{''.join(f'/{one}' for one in folder)}': missing property '{name}'" in found
        else:  # Its default says nothing either.
            assert found == outcome(changed(base, path, VALUES[path]))


@pytest.mark.parametrize("path", **by_name)
def test_another_type(path):
    # A quantity may be a number.
    for wrong in WRONG[type(VALUES[path])][path[0] == "resources" and isinstance(VALUES[path], str) :]:
        found = outcome(changed({}, path, wrong))
        assert isinstance(found, str), f"{path} took {wrong!r}"
        assert f"at '/{'/'.join(path)}" in found, f"{wrong!r}: {found}"


def test_what_may_be_lacking_is_not_there():
    values = {"settings": None, "resources": None} | example("job")
    values["trainer"] |= {"securityContext": None, "resources": None}
    [job] = [one for one in rendered(values) if one["kind"] == "Job"]
    spec = job["spec"]["template"]["spec"]
    [sidecar], [trainer] = spec["initContainers"], spec["containers"]
    assert sidecar["resources"] == trainer["resources"] == {}
    assert "securityContext" not in trainer
    assert not [one for one in sidecar["env"] if one["name"].startswith("SELECTOR_MAX_")]


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({"trainer": {"env": [{"name": "WORKERS", "value": 8}]}}, "/trainer/env/0/value"),
        ({"trainer": {"args": ["--steps", 100]}}, "/trainer/args/1"),
        ({"trainer": {"volumeMounts": [{"name": "data", "mountPath": None}]}}, "/trainer/volumeMounts/0/mountPath"),
        ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
        ({"imagePullSecrets": [{"name": 7}]}, "/imagePullSecrets/0/name"),
        ({"nodeSelector": {"gpu": True}}, "/nodeSelector/gpu"),
        ({"podAnnotations": {"port": 9464}}, "/podAnnotations/port"),
        ({"settings": {"run": None}}, "/settings/run"),
        ({"settings": {"max_width": "12"}}, "/settings/max_width"),
        ({"resources": {"requests": {"cpu": "two"}}}, "/resources/requests/cpu"),
    ],
)
def test_another_type_further_in(values, at):
    assert f"at '{at}'" in outcome(values)
