"""What the tests themselves stand on."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import programs, redis_servers
from support.made_once import made_once
from support.order import ROOT, SECONDS, pytest_collection_modifyitems


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


def test_a_folder_is_made_once_and_seen_only_when_it_is_whole(tmp_path):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "one").write_text("1")
        assert not (tmp_path / "it").exists()
        if len(made) == 1:
            raise RuntimeError("no room")
        (folder / "two").write_text("2")

    with pytest.raises(RuntimeError, match="no room"):
        made_once(tmp_path / "it", make)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made_once(tmp_path / "it", make), range(4)))
    assert found == [tmp_path / "it"] * 4
    assert len(made) == 2
    assert {file.name for file in found[0].iterdir()} == {"one", "two"}


def test_what_make_test_installs_is_no_reason_to_skip():
    """Only tests of other verbs are skipped without a package: of the chart, and of streams of libraries, which
    are not all to be had everywhere."""
    root = Path(__file__).parent
    word = "import" + "orskip"
    skipping = {file.parent.relative_to(root) for file in root.rglob("*.py") if word in file.read_text()}
    assert skipping == {Path("deploy/kubernetes"), Path("integration")}


def test_the_longest_files_begin_first():
    assert [name for name in SECONDS if not (ROOT / name).is_file()] == []
    slow, slower = sorted(SECONDS, key=SECONDS.get)[:2]
    names = ["tests/a.py::b", f"{slow}::b", "tests/a.py::a", f"{slower}::a", f"{slow}::a"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    pytest_collection_modifyitems(items)
    found = [item.nodeid for item in items]
    assert found == [f"{slower}::a", f"{slow}::b", f"{slow}::a", "tests/a.py::b", "tests/a.py::a"]


def test_a_cluster_node_whose_port_was_taken_meanwhile_starts_at_another(monkeypatch):
    """A node listens at a second port too, and either may be taken before it starts."""
    for beside in (0, redis_servers.BUS):
        taken, free = redis_servers.redis_port(), redis_servers.redis_port()
        ports = iter([taken, free])
        monkeypatch.setattr(redis_servers, "free_port", lambda beside, ports=ports: next(ports))
        with socket.create_server(("127.0.0.1", taken + beside)):
            server = redis_servers.valkey_server(config={"cluster-enabled": "yes"})
        started = server.port
        server.terminate()
        assert started == free
        monkeypatch.undo()
