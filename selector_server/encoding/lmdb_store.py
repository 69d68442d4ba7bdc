"""An LMDB store that several processes and threads use at once, and that is opened whatever state it is found in."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Condition
from typing import TypeVar

import lmdb

from selector_server.errors import SetupError

log = logging.getLogger(__name__)
T = TypeVar("T")
DATA, LOCK = "data.mdb", "lock.mdb"


class Closed(lmdb.Error):
    """The store was closed meanwhile."""


class Store:
    """The store in `folder`, at most `max_bytes` large. A file that cannot be used is moved aside inside the folder,
    and a new one begun; `on_corrupt` is told. Raises SetupError."""

    def __init__(self, folder: Path, max_bytes: int, on_corrupt: Callable[[], None] = lambda: None) -> None:
        self._changed, self._users, self._closed = Condition(), 0, False
        try:
            self._lmdb = self._opened(folder, max_bytes, on_corrupt)
        except (lmdb.Error, OSError, OverflowError) as error:
            raise SetupError("cache", folder, str(error)) from error

    @staticmethod
    def _opened(folder: Path, max_bytes: int, on_corrupt: Callable[[], None]) -> lmdb.Environment:
        folder.mkdir(parents=True, exist_ok=True)
        # metasync=False: after a power cut the last writes may be missing, but the store is whole.
        how = {"map_size": max_bytes, "metasync": False, "readahead": False, "max_readers": 512}
        try:
            return checked(lmdb.open(str(folder), **how), folder)  # type: ignore[arg-type]
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            aside = folder / f"{DATA}.corrupt-{time.time_ns()}"
            (folder / DATA).rename(aside)
            (folder / LOCK).unlink(missing_ok=True)
            log.error("%s is corrupt (%s); it is kept as %s, a new one is begun", folder / DATA, error, aside.name)
            on_corrupt()
            return lmdb.open(str(folder), **how)  # type: ignore[arg-type]

    def run(self, work: Callable[[lmdb.Transaction], T], *, write: bool = False) -> T:
        """What `work` returns of one transaction; it may be called twice. Raises lmdb.Error."""
        try:
            return self._attempt(work, write)
        except lmdb.MapResizedError:  # another process made the store larger than this one thought
            with self._alone():
                self._lmdb.set_mapsize(0)
            return self._attempt(work, write)

    def usage(self) -> tuple[int, int]:
        """Entries, and bytes up to the last page in use. Raises lmdb.Error."""

        def look(_: lmdb.Transaction) -> tuple[int, int]:
            about = self._lmdb.stat()
            return about["entries"], (self._lmdb.info()["last_pgno"] + 1) * about["psize"]

        return self.run(look)

    def close(self) -> None:
        """Waits for transactions under way; later ones raise lmdb.Error."""
        with self._alone():
            self._closed = True
            self._lmdb.close()

    def _attempt(self, work: Callable[[lmdb.Transaction], T], write: bool) -> T:
        with self._changed:
            if self._closed:
                raise Closed("the store is closed")
            self._users += 1
        try:
            begin = partial(self._lmdb.begin, write=write)
            with begin() if write else begin(buffers=True) as transaction:
                return work(transaction)
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No transaction of this process is open, and none begins."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
            yield


def checked(store: lmdb.Environment, folder: Path) -> lmdb.Environment:
    """The store, if its file is as long as it says: a memory map past the end of its file kills whoever reads it."""
    needed = (store.info()["last_pgno"] + 1) * store.stat()["psize"]
    found = os.stat(folder / DATA).st_size
    if 0 < found < needed:
        store.close()
        raise lmdb.CorruptedError(f"{found} bytes of {needed}")
    return store
