"""Small file systems in memory, which fill up for real."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import spawn

_MOUNT = 'mount -t tmpfs -o "$1" none "$2" && echo mounted && exec sleep infinity'
BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """The path of a new tmpfs with these mount options. It lives in the mount namespace of a process of its own, so
    that it ends with the tests however they end; everybody reaches it through that process's root."""
    folder.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("a small file system needs unshare, of util-linux")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    keeper = spawn(
        *user, "--mount", "sh", "-c", _MOUNT, "sh", options, folder,
        program=unshare, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if keeper.stdout.readline() != "mounted\n":
            pytest.skip(f"a small tmpfs cannot be mounted here: {keeper.stderr.read()}")
        yield Path(f"/proc/{keeper.pid}/root{folder.absolute()}")
    finally:
        keeper.kill()
        keeper.communicate()


def fill_up(folder: Path, leave: int = 0) -> None:
    """Fills the folder's file system with ballast, but for so many bytes."""
    count = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave
    with (folder / BALLAST).open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), count)
    if not leave:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (folder / "more").write_bytes(bytes(1))
        (folder / "more").unlink()


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """This process has a lower resource limit meanwhile."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
