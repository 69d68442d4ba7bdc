"""One fetch for all sidecars of a host: the first one puts a version's payload into a folder, where the others read it.

Redis hands out about 1 GB/s in all, however many read. The folder should be in memory (/dev/shm/…). What is read from
it is verified like what comes from Redis, so that whoever can write there can harm nobody.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selector_proto.files import opened

from selector_server.errors import SetupError

log = logging.getLogger(__name__)

_SUFFIX, _LOCK = ".weights", ".lock"
# Payloads that stay: the newest, and the one that slower sidecars may still be about to read.
_KEPT = 2
# Linux reads less than 2 GiB at once, and does not say so.
_PIECE_BYTES = 1 << 30
# How long another sidecar of the host may take to fetch a version.
LOCK_SECONDS = 60.0


class HostShare:
    """Payloads by digest in `folder`, which is made if it is not there. Raises SetupError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SetupError("weights_share", folder, f"must be a folder that can be written: {error}") from error

    def fill(self, payload: memoryview, digest: bytes, fetch: Callable[[], None]) -> bool:
        """Whether the payload of this digest was there already, and is in `payload` now (the caller verifies it);
        otherwise `fetch` puts it there, for this sidecar and for the others of the host, which wait meanwhile."""
        file = self._folder / (digest.hex() + _SUFFIX)
        try:
            with self._locked(digest.hex()):
                if _read(file, payload):
                    return True
                fetch()
                self._put(file, payload)
        except OSError as error:  # a full or vanished folder costs the sharing, not the weights
            log.warning("weights are not shared on this host: %s", error)
            fetch()
        return False

    def drop(self, digest: bytes) -> None:
        """Forgets a payload that turned out to be wrong."""
        (self._folder / (digest.hex() + _SUFFIX)).unlink(missing_ok=True)

    def _put(self, file: Path, payload: memoryview) -> None:
        handle, name = tempfile.mkstemp(".part", dir=self._folder)
        try:
            with open(handle, "wb") as stream:
                stream.write(payload)
            os.replace(name, file)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            log.warning("weights are not shared on this host: %s", error)
            return
        by_age = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda other: other.stat().st_mtime, reverse=True)
        for old in by_age[_KEPT:]:
            old.unlink(missing_ok=True)
            old.with_suffix(_LOCK).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone among the host's sidecars; the lock ends with its holder."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(self._folder / (name + _LOCK), flags, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _taken(lock) and time.monotonic() < deadline:
                time.sleep(0.02)
            yield  # without the lock if its holder hangs: then both fetch
        finally:
            os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: Path, payload: memoryview) -> bool:
    """Whether the file is there and exactly fills `payload`. Read, not mapped: a mapped file that shrinks kills its
    reader."""
    try:
        with opened(file) as stream:
            if os.fstat(stream.fileno()).st_size != len(payload):
                return False
            end = 0
            while count := stream.readinto(payload[end : end + _PIECE_BYTES]):
                end += count
    except FileNotFoundError:
        return False
    return end == len(payload)
