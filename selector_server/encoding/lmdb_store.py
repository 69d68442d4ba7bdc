"""An LMDB store that several processes and threads use at once, and that opens in whatever state its files are.

This is the only module that speaks lmdb: it turns the library's errors into StoreFailed and its kinds. They never
leave `encoding`: whoever uses the store can go on without it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import TypeAlias, TypeVar

import lmdb

from selector_server.errors import SetupError

log = logging.getLogger(__name__)
T = TypeVar("T")
Transaction: TypeAlias = lmdb.Transaction
DATA, LOCK = "data.mdb", "lock.mdb"


class StoreFailed(Exception):
    """A transaction did not happen."""


class StoreFull(StoreFailed):
    """The store has reached its largest size."""


class StoreCorrupt(StoreFailed):
    """The store's file is damaged."""


@contextmanager
def _mapped() -> Iterator[None]:
    """Raises what lmdb raises as StoreFailed or one of its kinds."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFull(str(error)) from error
    except lmdb.CorruptedError as error:
        raise StoreCorrupt(str(error)) from error
    except lmdb.Error as error:
        raise StoreFailed(str(error)) from error


class LmdbStore:
    """The store in `folder`, at most `max_bytes` large. A file that cannot be used is moved aside inside the folder,
    a new one is begun, and `on_corrupt` is called. Raises SetupError if the folder cannot be used at all."""

    def __init__(self, folder: Path, max_bytes: int, on_corrupt: Callable[[], None] = lambda: None) -> None:
        self._changed, self._users, self._closed = Condition(), 0, False
        try:
            self._lmdb = self._opened(folder, max_bytes, on_corrupt)
        except (lmdb.Error, OSError, OverflowError) as error:
            raise SetupError("cache", folder, str(error)) from error

    @staticmethod
    def _opened(folder: Path, max_bytes: int, on_corrupt: Callable[[], None]) -> lmdb.Environment:
        folder.mkdir(parents=True, exist_ok=True)
        # With metasync=False the last writes may be lost in a power cut, but the store stays whole.
        options = {"map_size": max_bytes, "metasync": False, "readahead": False, "max_readers": 512}
        try:
            return _whole(lmdb.open(str(folder), **options), folder)  # type: ignore[arg-type]
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            aside = folder / f"{DATA}.corrupt-{time.time_ns()}"
            (folder / DATA).rename(aside)
            (folder / LOCK).unlink(missing_ok=True)
            log.error("%s is corrupt (%s); it is kept as %s, a new one is begun", folder / DATA, error, aside.name)
            on_corrupt()
            return lmdb.open(str(folder), **options)  # type: ignore[arg-type]

    def run(self, work: Callable[[Transaction], T], *, write: bool = False) -> T:
        """Returns what `work` returns for one transaction; `work` may be called twice. Raises StoreFailed."""
        with _mapped():
            try:
                return self._attempt(work, write)
            except lmdb.MapResizedError:  # another process made the store larger than this one believed
                with self._alone():
                    self._lmdb.set_mapsize(0)
                return self._attempt(work, write)

    def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes up to the last page in use. Raises StoreFailed."""
        return self.run(lambda _: (self._lmdb.stat()["entries"], _used_bytes(self._lmdb)))

    def close(self) -> None:
        """Waits for the transactions under way; later ones raise StoreFailed."""
        with self._alone():
            self._closed = True
            self._lmdb.close()

    def _attempt(self, work: Callable[[Transaction], T], write: bool) -> T:
        with self._changed:
            if self._closed:
                raise StoreFailed("the store is closed")
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
        """While the block runs, this process has no transaction open and begins none."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
            yield


@dataclass(frozen=True)
class Snapshot:
    """A store as it was at one moment, with the largest size that it was ever opened with."""

    transaction: Transaction
    used_bytes: int
    max_bytes: int


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """Opens the store in `folder` for reading only; nothing is made or repaired. Raises SetupError, also for what lmdb
    raises inside the block."""
    if not (folder / DATA).exists():
        raise SetupError("cache", folder, f"must be a folder with a {DATA}")
    try:
        # A map size of 0 stands for the one that the store was made with.
        with lmdb.open(str(folder), map_size=0, readonly=True, readahead=False) as store:
            _whole(store, folder)
            with store.begin() as transaction:
                yield Snapshot(transaction, _used_bytes(store), store.info()["map_size"])
    except (lmdb.Error, OSError) as error:
        raise SetupError("cache", folder, str(error)) from error


def _whole(store: lmdb.Environment, folder: Path) -> lmdb.Environment:
    """Returns the store if its file is as long as it says. A memory map past the end of its file would kill whoever
    reads it. Raises lmdb.CorruptedError."""
    needed, found = _used_bytes(store), os.stat(folder / DATA).st_size
    if 0 < found < needed:
        store.close()
        raise lmdb.CorruptedError(f"{found} bytes of {needed}")
    return store


def _used_bytes(store: lmdb.Environment) -> int:
    last_page: int = store.info()["last_pgno"]
    page_bytes: int = store.stat()["psize"]
    return (last_page + 1) * page_bytes
