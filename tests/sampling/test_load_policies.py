"""Policies that other packages offer: found, used, and refused when they are none."""

import sys

import pytest

from selector_server.sampling import load_policies

MODULE = """
from selector_server.sampling import Needs, Policy

class First(Policy):
    name = "first"
    needs = Needs.NOTHING
    def pick(self, scores, plan): ...

class Twin(First):
    name = "joint"

class Stranger: ...
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution that offers one policy."""

    def install(target: str) -> None:
        (tmp_path / "foreign_policies.py").write_text(MODULE)
        info = tmp_path / "foreign-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[selector_server.policies]\nmine = {target}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "foreign_policies", raising=False)

    return install


def test_the_built_in_policies_are_always_there():
    assert {"joint", "independent", "uniform"} <= load_policies().keys()


def test_a_package_adds_a_policy_by_an_entry_point(installed):
    installed("foreign_policies:First")
    assert type(load_policies()["first"]).__module__ == "foreign_policies"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("foreign_policies:Twin", "has the name of another, 'joint'"),
        ("foreign_policies:Stranger", "is a Stranger, not a Policy"),
        ("foreign_policies:Absent", "cannot be loaded"),
        ("absent_module:Policy", "cannot be loaded"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(installed, target, message):
    installed(target)
    with pytest.raises(ValueError, match=message) as caught:
        load_policies()
    assert target in str(caught.value)
