"""Unix sockets: who may connect, what a killed server leaves, and what is never replaced."""

import multiprocessing
import os
import signal
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest
from selector_client import Selector
from selector_proto.files import try_lock
from selector_tools.cli import main
from support.disks import small_disk
from support.processes import eventually
from support.secured import ADMIN_TOKEN, DATA_TOKEN

from selector_server.errors import SetupError
from selector_server.rpc.security import unix_socket
from selector_server.rpc.security.unix_socket import bound

NOBODY = 65534


@pytest.fixture
def place():
    """A folder that other users see."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def listen(path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def bind(path, mode=0o600, group=None) -> socket.socket:
    """As the server does it, with a socket of our own."""
    with bound("listen", f"unix:{path}", mode, group):
        server = listen(path)
        assert mode_of(path) == 0o600  # before anybody may connect
    return server


def mode_of(path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def connects(path, user) -> bool:
    """Whether that user, of the group with the same number and no other, may connect."""
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return True
    except PermissionError:
        return False
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def select(path, losses):
    with Selector(f"unix:{path}", policy="independent", on_error="raise", timeout=5) as chosen:
        chosen.connect(20)
        return chosen.select_losses(*losses)


def test_a_killed_server_does_not_block_the_next(sidecar, place, losses):
    path = place / "s.sock"
    server = sidecar({"listen": f"unix:{path}", "socket_mode": "0660"}, wait=False)
    eventually(lambda: "serving on" in server.text, 60, lambda: server.text, server.must_live)
    assert select(path, losses).fallback == ""
    assert mode_of(path) == 0o660
    server.signal(signal.SIGKILL)
    server.process.wait(10)
    assert path.is_socket()
    again = sidecar({"listen": f"unix:///{str(path).lstrip('/')}"}, wait=False)
    eventually(lambda: "serving on" in again.text, 60, lambda: again.text, again.must_live)
    assert select(path, losses).fallback == ""
    assert mode_of(path) == 0o600
    again.signal(signal.SIGTERM)
    assert again.process.wait(20) == 0


@pytest.fixture
def guarded(sidecar, files, place):
    """A sidecar with TLS and tokens that listens on sockets alone, one for trainers and one for operators; and what a
    command that is run beside it has in its environment."""
    settings = {
        "listen": f"unix:{place}/s.sock",
        "admin_listen": f"unix:{place}/admin.sock",
        "tls_certificate_file": files["server.pem"],
        "tls_key_file": files["server.key"],
        "tls_client_ca_file": files["ca.pem"],
    }
    for name, token in (("token_file", DATA_TOKEN), ("admin_token_file", ADMIN_TOKEN)):
        (file := place / name).write_text(token)
        settings[name] = file
    server = sidecar(settings, wait=False)
    eventually(lambda: "serving on" in server.text, 60, lambda: server.text, server.must_live)
    return {name: str(value) for name, value in settings.items()}


def test_an_operator_beside_it_looks_and_pins(guarded, capsys, monkeypatch):
    """Without certificates: the sockets' permissions guard them. The data token is there, an admin token is named."""
    for name, value in guarded.items():
        monkeypatch.setenv(f"SELECTOR_{name.upper()}", value)
    address, token = guarded["admin_listen"], f"--token-file={guarded['admin_token_file']}"
    for flags in ([], [token]):
        assert main(["weights", "status", address, *flags]) == 0
        assert capsys.readouterr().out.startswith("serving")
    assert main(["weights", "unpin", address]) == 1
    assert "PERMISSION_DENIED: authorization is a token for data calls" in capsys.readouterr().err
    assert main(["weights", "unpin", address, token]) == 1
    assert "FAILED_PRECONDITION: weights is missing" in capsys.readouterr().err  # let in: no learner
    monkeypatch.delenv("SELECTOR_TOKEN_FILE")
    assert main(["weights", "status", address]) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    assert main(["info", address, token]) == 1
    assert "UNIMPLEMENTED" in capsys.readouterr().err


def test_a_socket_needs_no_certificates_and_takes_no_notice_of_them(guarded, files, losses):
    for given in ({}, {"ca_file": files["ca.pem"], "server_name": "selector.example"}, {"tls": True}):
        settings = {"policy": "independent", "on_error": "raise", "timeout": 5, "token_file": guarded["token_file"]}
        with Selector(guarded["listen"], **settings, **given) as chosen:
            chosen.connect(20)
            assert chosen.select_losses(*losses).fallback == ""


def test_modes_and_groups(place):
    path, group = place / "s.sock", os.getgid()
    with bind(path, 0o660, str(group)):
        assert mode_of(path) == 0o660
        assert os.lstat(path).st_gid == group
    with bind(path, 0o600):  # stale by now
        assert mode_of(path) == 0o600
    path.unlink()
    umask = os.umask(0o022)
    os.umask(umask)
    with pytest.raises(SetupError, match="its permissions cannot be set"), bind(path, 0o660, "no-such-group"):
        pass
    assert os.umask(umask) == umask


def test_other_users_are_kept_out_by_the_kernel(place):
    if os.geteuid() != 0:
        pytest.skip("only root can try as another user")
    path = place / "s.sock"
    with bind(path, 0o600):
        assert not connects(path, NOBODY)
        assert connects(path, 0)
    other = place / "group.sock"
    with bind(other, 0o660, str(NOBODY)):
        assert connects(other, NOBODY)
        assert not connects(other, NOBODY - 1)


def test_nothing_of_others_is_replaced(place):
    path = place / "s.sock"
    with listen(path), pytest.raises(SetupError, match=f"another server listens there, process {os.getpid()}$"):
        bind(path)
    path.unlink()
    path.write_text("kept")
    with pytest.raises(SetupError, match="something else than a socket; move it away"), bind(path):
        pass
    assert path.read_text() == "kept"
    path.unlink()
    (target := place / "target").write_text("kept")
    path.symlink_to(target)
    with pytest.raises(SetupError, match="something else than a socket"), bind(path):
        pass
    assert path.is_symlink()
    assert target.read_text() == "kept"
    path.unlink()
    path.symlink_to(place / "nowhere")
    with pytest.raises(SetupError, match="something else than a socket"), bind(path):
        pass


def test_what_takes_the_sockets_place_is_not_followed(place):
    """Not even to another socket of ours."""
    path, target = place / "s.sock", place / "target"
    with listen(target):
        target.chmod(0o640)
        with pytest.raises(SetupError, match="its permissions cannot be set"):
            with bound("listen", f"unix:{path}", 0o666, None):
                path.symlink_to(target)
        assert mode_of(target) == 0o640


def _race(path, go, answers):
    go.wait(20)
    try:
        server = bind(path)
    except SetupError as error:
        answers.put(str(error))
    else:
        answers.put("")
        go.clear()
        go.wait(20)
        server.close()


@pytest.mark.parametrize("stale", [True, False])
def test_of_servers_that_start_at_once_one_has_the_socket(place, stale, monkeypatch):
    path, fork = place / "s.sock", multiprocessing.get_context("fork")
    if stale:
        listen(path).close()
    looked = unix_socket._make_way
    # The moment between looking and binding is longer here.
    monkeypatch.setattr(unix_socket, "_make_way", lambda *a: (looked(*a), time.sleep(0.1)))
    go, answers = fork.Event(), fork.Queue()
    racers = [fork.Process(target=_race, args=(path, go, answers), daemon=True) for _ in range(3)]
    for racer in racers:
        racer.start()
    go.set()
    won, *lost = sorted(answers.get(timeout=20) for _ in racers)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    go.set()
    assert won == ""
    assert all("another server listens there" in error for error in lost)
    for racer in racers:
        racer.join(20)


def test_a_folder_that_somebody_locks_is_not_waited_for_for_ever(place, monkeypatch):
    monkeypatch.setattr(unix_socket, "LOCK_SECONDS", 0.05)
    lock = os.open(place, os.O_RDONLY)
    assert try_lock(lock)
    with pytest.raises(SetupError, match=r"another process has locked its folder for 0\.05 s"):
        bind(place / "s.sock")
    os.close(lock)
    bind(place / "s.sock").close()


def test_why_a_path_cannot_be_bound(place):
    with pytest.raises(SetupError, match="its folder cannot be used: No such file or directory"):
        bind(place / "nowhere" / "s.sock")
    with pytest.raises(SetupError, match="its folder cannot be used: Not a directory"):
        bind(Path(__file__) / "s.sock")
    with (
        small_disk(place / "disk", "ro") as disk,
        pytest.raises(SetupError, match="cannot be bound: Read-only file system"),
    ):
        bind(disk / "s.sock")
    if os.geteuid() != 0:
        pytest.skip("only root can try as another user")
    os.seteuid(NOBODY)
    try:
        with pytest.raises(SetupError, match="cannot be bound: Permission denied"):
            bind(place / "s.sock")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["x" * 120, ""])
def test_paths_that_cannot_be(name, place):
    address = f"unix:{place}/{name}" if name else "unix:"
    with (
        pytest.raises(SetupError, match=r"must have 1 to 107 bytes|something else"),
        bound("listen", address, 0o600, None),
    ):
        pass
