"""Writes what was selected into a folder, as Parquet files that nobody but their owner reads, within a bound."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from selector_server.errors import SelectorError, SetupError
from selector_server.inspection import parquet
from selector_server.inspection.observation import Observation

log = logging.getLogger(__name__)

# A file has at most so many super-batches, so many candidates, and what came in so many seconds.
SUPER_BATCHES, CANDIDATES, SECONDS = 64, 1 << 18, 60.0
SUFFIX = ".parquet"
# A disk that is full is told of once in so long.
TELL_SECONDS = 60.0


class Recorder:
    """Records observations of a run, from one thread. `content` says whether ids, captions and tags are written. Of
    the folder's files the oldest go when all together are larger than `most` bytes. A file is there whole or not at
    all. What cannot be written is told of in the log, and forgotten.

    Raises SetupError for a folder that cannot be written to, and where pyarrow is missing."""

    def __init__(
        self, folder: Path, run: str, content: bool, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._run, self._content, self._most, self._now = folder, run, content, most, now
        self._waiting: list[Observation] = []
        self._since = self._told = float("-inf")
        try:
            parquet.pyarrow_modules()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.touch(0o600)
            probe.unlink()
        except SelectorError as error:
            raise SetupError("record", folder, error.limit) from error
        except OSError as error:
            raise SetupError("record", folder, f"must be a folder that can be written to: {error.strerror}") from error
        for left in folder.glob(f".*{SUFFIX}"):  # A process that was killed left it half written.
            left.unlink(missing_ok=True)

    def add(self, seen: Observation) -> None:
        """Takes a super-batch, and writes those that wait when there are enough."""
        content = None if seen.content is None or not self._content else replace(seen.content, pictures={})
        if not self._waiting:
            self._since = self._now()
        self._waiting.append(replace(seen, content=content))
        candidates = sum(one.size for one in self._waiting)
        if len(self._waiting) >= SUPER_BATCHES or candidates >= CANDIDATES:
            self.flush()
        self.look()

    def look(self) -> None:
        """Writes what has waited for long enough."""
        if self._waiting and self._now() - self._since >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        try:
            data = parquet.written(waiting, self._run, self._content)
            self._make_room(len(data))
            self._write(f"{waiting[0].at:017.6f}-{waiting[0].number:09}{SUFFIX}", data)
        except OSError as error:
            if self._now() - self._told >= TELL_SECONDS:
                self._told = self._now()
                log.warning("record: %s cannot be written to: %s", self._folder, error.strerror)

    def _write(self, name: str, data: bytes) -> None:
        half = self._folder / f".{name}"
        with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        half.rename(self._folder / name)

    def _make_room(self, coming: int) -> None:
        files = recorded(self._folder)
        sizes = {file: file.stat().st_size for file in files}
        total = sum(sizes.values()) + coming
        for file in files:
            if total <= self._most:
                break
            file.unlink(missing_ok=True)
            total -= sizes[file]


def recorded(folder: Path) -> list[Path]:
    """The files that a recorder wrote into a folder, oldest first: their names begin with the time."""
    return sorted(file for file in folder.glob(f"*{SUFFIX}") if not file.name.startswith("."))
