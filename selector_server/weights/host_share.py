"""The sidecars of a host fetch a version once: the first one puts its payload into a folder, where the others read it.

Redis hands out about 1 GB/s in all, however many read. The folder should be in memory (/dev/shm/…). What is read from
it is verified like what comes from Redis, so that whoever can write there can harm nobody.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from selector_proto import files

from selector_server.errors import SetupError

log = logging.getLogger(__name__)

_SUFFIX, _LOCK = ".weights", ".lock"
# Two payloads stay: the newest, and the one that slower sidecars may still be about to read.
_KEPT = 2
# Linux reads less than 2 GiB at once, and does not say so.
_PIECE_BYTES = 1 << 30
# Another sidecar of the host may take so long to fetch a version. Then it is taken to hang, and not waited for.
LOCK_SECONDS = 60.0


class HostShare:
    """Payloads by their digest in `folder`, which is made if it is not there. Raises SetupError."""

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
            with files.locked(file.with_suffix(_LOCK), LOCK_SECONDS):  # who did not get it fetches too
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
        try:
            files.replace(file, payload, 0o600)
        except OSError as error:
            log.warning("weights are not shared on this host: %s", error)
            return
        others = [other for other in self._folder.glob(f"*{_SUFFIX}") if other != file]  # whatever the clock says
        others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
        for old in others[_KEPT - 1 :]:
            old.unlink(missing_ok=True)
            old.with_suffix(_LOCK).unlink(missing_ok=True)


def _read(file: Path, payload: memoryview) -> bool:
    """Whether the file is there and exactly fills `payload`. It is read, not mapped: a mapped file that shrinks kills
    its reader."""
    try:
        with files.opened(file) as stream:
            if os.fstat(stream.fileno()).st_size != len(payload):
                return False
            end = 0
            while count := stream.readinto(payload[end : end + _PIECE_BYTES]):
                end += count
    except FileNotFoundError:
        return False
    return end == len(payload)
