"""Reads files again when they change: certificates and tokens, which are rotated."""

import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from selector_server.errors import SetupError

log = logging.getLogger(__name__)

T = TypeVar("T")
_Signature = tuple[tuple[int, int, int] | None, ...]


class ReloadedFiles(Generic[T]):
    """Holds what `parse` makes of `files`. `parse` reads them itself and raises SetupError, which must not quote them.

    What cannot be parsed later leaves the former `value` in place. `secret` files should be their owner's alone.
    `count(result)` gets "taken" or "refused" for each change.
    """

    def __init__(
        self, files: Sequence[Path], secret: Sequence[Path], parse: Callable[[], T], count: Callable[[str], None]
    ) -> None:
        self._files, self._secret, self._parse, self._count = files, secret, parse, count
        self._seen = self._signature()
        self.value = self._load()

    def refresh(self) -> None:
        """Looks whether the files changed. It is cheap when they did not, and never raises."""
        if (seen := self._signature()) == self._seen:
            return
        self._seen = seen
        try:
            self.value = self._load()
        except SetupError as error:
            log.error("a changed file is not taken, the former one stays in use: %s", error)
            self._count("refused")
        else:
            log.info("read again after a change: %s", ", ".join(map(str, self._files)))
            self._count("taken")

    def _load(self) -> T:
        for file in self._files:
            _check_mode(file, file in self._secret)
        return self._parse()

    def _signature(self) -> _Signature:
        return tuple(map(_identity, self._files))


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _check_mode(file: Path, secret: bool) -> None:
    """Refuses what others may write. What others may read is allowed, for mounted secrets often are so in containers
    where nobody else is."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return  # Reading it says why.
    if mode & stat.S_IWOTH:
        raise SetupError("file", file, f"may be written by everybody, mode {stat.S_IMODE(mode):04o}; chmod o-w")
    if secret and mode & stat.S_IROTH:
        log.warning("%s holds a secret and may be read by everybody, mode %04o", file, stat.S_IMODE(mode))
