"""Files that several processes share: read where strangers may write, replaced whole, and locked by one at a time."""

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

# A file that is being written ends with this, and begins with a dot.
UNFINISHED = ".unfinished"
# How old a file must be for `sweep_unfinished` to take its writer for dead.
_STALE_SECONDS = 3600
_LOCK_POLL_SECONDS = 0.005


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """A regular file, unbuffered, for reading. A link is never followed, and the other end of a FIFO never waited for.
    Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with FileIO(file, closefd=False) as stream:
            yield stream
    finally:
        os.close(file)


def replace(path: Path, content: bytes | memoryview, mode: int, *, durable: bool = False) -> None:
    """Puts `content` in the place of a file, by a rename: a reader sees the old file or the new one whole. `durable`
    content is on the disk before the rename, so that a power cut cannot leave an empty file. Raises OSError."""
    handle, name = tempfile.mkstemp(UNFINISHED, ".", path.parent)
    try:
        with open(handle, "wb") as stream:
            stream.write(content)
            os.fchmod(handle, mode)
            if durable:
                stream.flush()
                os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clock(folder: Path) -> float:
    """The time by the folder's own clock, in Unix seconds, which is that of another host if a server keeps it: the date
    of a new file, which is gone again. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as stream:
        stream.write(b"0")
        return os.fstat(stream.fileno()).st_mtime


def sweep_unfinished(folder: Path) -> None:
    """Removes what writers that were killed left half written an hour ago or earlier. Raises OSError."""
    now = clock(folder)
    for file in folder.glob(f".*{UNFINISHED}"):
        try:
            if now - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
        except FileNotFoundError:
            continue  # another process was faster


@contextmanager
def locked(path: Path, seconds: float, mode: int = 0o600) -> Iterator[bool]:
    """Waits up to `seconds` to be alone among all threads and processes that lock this file, which is made if it is
    not there. Yields whether that came true; the lock ends with the block, and with the process. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        yield wait_lock(lock, seconds)
    finally:
        os.close(lock)


def wait_lock(file: int, seconds: float) -> bool:
    """Waits up to `seconds` for the exclusive lock of an open file or folder, which ends when that is closed. Returns
    whether it came. Raises OSError."""
    deadline = time.monotonic() + seconds
    while not (held := try_lock(file)) and time.monotonic() <= deadline:
        time.sleep(_LOCK_POLL_SECONDS)
    return held


def try_lock(file: int) -> bool:
    """Takes the exclusive lock of an open file or folder, which ends when that is closed; False if another holds it.
    Raises OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
