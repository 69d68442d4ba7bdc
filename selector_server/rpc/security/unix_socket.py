"""Binds unix sockets: nothing but a socket that we left is replaced, and nobody connects before permissions are set.

gRPC binds the socket itself, replaces whatever socket is at its path (also of a living server), and says nothing of who
connected; see docs/adr/0017-unix-sockets-by-permission.md.
"""

import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selector_proto.contract import MAX_SOCKET_PATH_BYTES, socket_path
from selector_proto.files import wait_lock

from selector_server.errors import SetupError

# Two servers that start at once bind one after the other. Binding takes milliseconds.
LOCK_SECONDS = 5.0


@contextmanager
def bound(setting: str, listen: str, mode: int, group: str | None) -> Iterator[None]:
    """Makes way for the address, which must be bound within the block, and sets its permissions. Raises SetupError."""
    name = socket_path(listen) or ""
    if not 1 <= len(os.fsencode(name)) <= MAX_SOCKET_PATH_BYTES:
        raise SetupError(setting, listen, f"its path must have 1 to {MAX_SOCKET_PATH_BYTES} bytes")
    path = Path(name)
    with _alone(setting, listen, path.parent):
        _make_way(setting, listen, path)
        former = os.umask(0o177)
        try:
            _try(setting, listen, path)
            yield
        finally:
            os.umask(former)
    try:
        _permit(path, mode, group)
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(setting, listen, f"its permissions cannot be set: {error}") from error


@contextmanager
def _alone(setting: str, listen: str, folder: Path) -> Iterator[None]:
    """Within the block no other server binds in this folder: of two that find a stale socket, the slower one would
    remove what the faster one has bound."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError(setting, listen, f"its folder cannot be used: {error.strerror}") from error
    try:
        if not wait_lock(lock, LOCK_SECONDS):
            raise SetupError(setting, listen, f"another process has locked its folder for {LOCK_SECONDS:g} s")
        yield
    finally:
        os.close(lock)


def _try(setting: str, listen: str, path: Path) -> None:
    """Binds the path for a moment, because gRPC says only to its own log why it cannot."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(os.fspath(path))
            path.unlink()
        except OSError as error:
            raise SetupError(setting, listen, f"cannot be bound: {error.strerror}") from error


def _make_way(setting: str, listen: str, path: Path) -> None:
    """Removes a socket on which nobody listens, as a killed server leaves it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SetupError(setting, listen, f"cannot be looked at: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise SetupError(setting, listen, "there is something else than a socket; move it away")
    if status.st_uid != os.geteuid():
        raise SetupError(setting, listen, f"the socket there is of user {status.st_uid}; move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(setting, listen, f"the socket there cannot be tried: {error}") from error
        else:
            owner, *_ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            process = f"process {owner}" if owner else "a process of another container"
            raise SetupError(setting, listen, f"must be free: another server listens there, {process}")


def _permit(path: Path, mode: int, group: str | None) -> None:
    """Goes by a descriptor: what another user may have put in the path's place is not followed."""
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise ValueError("another user replaced it")
        name = f"/proc/self/fd/{file}"
        if group is not None:
            os.chown(name, -1, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid)
        os.chmod(name, mode)
    finally:
        os.close(file)
