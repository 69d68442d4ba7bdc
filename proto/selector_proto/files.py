"""Files in a folder that strangers may write to."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """A regular file, unbuffered, for reading: never through a link, and never waiting for a FIFO's other end. Raises
    OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with FileIO(file, closefd=False) as stream:
            yield stream
    finally:
        os.close(file)
