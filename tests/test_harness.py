"""What the tests themselves stand on."""

import sys
from pathlib import Path

import pytest
from support import programs


def test_programs_beside_this_python_are_found_first_and_then_those_on_path(tmp_path, monkeypatch):
    for folder in ("environment", "machine"):
        (tmp_path / folder).mkdir()
    for name in ("environment/python", "environment/both", "machine/both", "machine/one"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "environment" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "machine"))
    assert programs.find("both") == str(tmp_path / "environment" / "both")
    assert programs.find("one") == str(tmp_path / "machine" / "one")
    assert programs.find("none") is None


def test_what_an_extra_installs_must_be_there_and_what_debian_has_may_be_missing():
    assert Path(programs.required("ruff")).name == "ruff"
    with pytest.raises(pytest.fail.Exception, match=r"none-such is missing, .*pip install -e '\.\[dev\]'"):
        programs.required("none-such")
    with pytest.raises(pytest.skip.Exception, match=r"none-such .* \(Debian: apt-get install package\)"):
        programs.optional("none-such", "package")
