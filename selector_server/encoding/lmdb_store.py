"""An LMDB store that several processes and threads use at once, and that opens in whatever state its files are.

This is the only module that speaks lmdb: it turns the library's errors into StoreFailed and its kinds. They never
leave `encoding`: whoever uses the store can go on without it.

LMDB maps its files, and touching a mapped page that the file system cannot provide ends the process by a bus error. So
the lock file, which LMDB writes through its map, is given all of its room before it is mapped; the data file is
written by system calls, which can say that the disk is full. Before each transaction both are looked at, whether
somebody cut them short.
"""

import errno
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
MAX_READERS = 512
# The lock file has this size from the start: room for so many readers, in whole pages of any system.
LOCK_BYTES = 1 << 16
# The disk counts as full if the data file cannot grow by so much. A write that failed for that took all but a little.
_GROWTH_BYTES = 1 << 20


class StoreFailed(Exception):
    """A transaction did not happen."""


class StoreFull(StoreFailed):
    """The store has reached its largest size."""


class NoRoom(StoreFailed):
    """The file system lets the store's file grow no further: it is full, or a quota or a limit of file sizes is
    reached."""


class StoreCorrupt(StoreFailed):
    """The store's file is damaged."""


@contextmanager
def _raised() -> Iterator[None]:
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
            self._files = [_MappedFile(folder / name) for name in (DATA, LOCK)]
        except lmdb.MemoryError as error:
            limit = f"{max_bytes} bytes of addresses cannot be had; lower --cache-bytes, or raise the limit (ulimit -v)"
            raise SetupError("cache", folder, limit) from error
        except lmdb.LockError as error:
            # LMDB tells processes apart by their numbers, which containers give out for themselves.
            limit = f"a process of another container has it open, whose number there is {os.getpid()} too ({error}); "
            limit += "share one process namespace, or give each a cache of its own"
            raise SetupError("cache", folder, limit) from error
        except (lmdb.Error, OSError, OverflowError) as error:
            raise SetupError("cache", folder, str(error)) from error

    @staticmethod
    def _opened(folder: Path, max_bytes: int, on_corrupt: Callable[[], None]) -> lmdb.Environment:
        folder.mkdir(parents=True, exist_ok=True)
        # With metasync=False the last writes may be lost in a power cut, but the store stays whole.
        options = {"map_size": max_bytes, "metasync": False, "readahead": False, "max_readers": MAX_READERS}
        _allocate_lock(folder / LOCK)
        try:
            return _whole(lmdb.open(str(folder), **options), folder)  # type: ignore[arg-type]
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            aside = folder / f"{DATA}.corrupt-{time.time_ns()}"
            (folder / DATA).rename(aside)
            (folder / LOCK).unlink(missing_ok=True)
            _allocate_lock(folder / LOCK)
            log.error("%s is corrupt (%s); it is kept as %s, a new one is begun", folder / DATA, error, aside.name)
            on_corrupt()
            return lmdb.open(str(folder), **options)  # type: ignore[arg-type]

    def run(self, work: Callable[[Transaction], T], *, write: bool = False) -> T:
        """Returns what `work` returns for one transaction; `work` may be called twice. Raises StoreFailed."""
        with _raised():
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
            if self._closed:
                return
            self._closed = True
            self._files[1].lengthen()  # closing writes to the lock file's map
            self._lmdb.close()
            for file in self._files:
                file.close()

    def _attempt(self, work: Callable[[Transaction], T], write: bool) -> T:
        with self._changed:
            if self._closed:
                raise StoreFailed("the store is closed")
            self._users += 1
        try:
            self._check_whole()
            begin = partial(self._lmdb.begin, write=write)
            with begin() if write else begin(buffers=True) as transaction:
                return work(transaction)
        except (lmdb.MapFullError, lmdb.MapResizedError, lmdb.CorruptedError):
            raise
        except lmdb.Error:
            if write:
                self._check_room()
            raise
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _check_whole(self) -> None:
        """Raises StoreCorrupt if somebody cut a file short: who reads mapped pages that are gone is killed."""
        data, _ = self._files
        for file in self._files:
            file.check()
        if (used := _used_bytes(self._lmdb)) > data.size:  # another process has made it longer, or it was cut since
            data.check(used)

    def _check_room(self) -> None:
        """Raises NoRoom if the data file cannot grow. LMDB reports a write that the disk took only in part as an
        input/output error, whatever the reason is."""
        try:
            with self._lmdb.begin(write=True):  # nobody else writes meanwhile
                self._files[0].grow(_GROWTH_BYTES)
        except lmdb.Error:
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoRoom(os.strerror(error.errno)) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While the block runs, this process has no transaction open and begins none."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
            yield


class _MappedFile:
    """A file that is mapped while this is open. It is held without being opened: LMDB loses its locks when any other
    descriptor of the lock file is closed. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.size = os.fstat(self._handle).st_size

    def check(self, needed: int = 0) -> None:
        """Raises StoreCorrupt if the file is shorter than it was, or than `needed`."""
        size, needed = os.fstat(self._handle).st_size, max(self.size, needed)
        if size < needed:
            raise StoreCorrupt(f"{self._path} was cut from {needed} to {size} bytes while it was in use")
        self.size = size

    def lengthen(self) -> None:
        """Makes the file as long as it was. Raises OSError."""
        if os.fstat(self._handle).st_size < self.size:
            os.truncate(self._link, self.size)

    def grow(self, count: int) -> None:
        """Gives the file `count` bytes more. Raises OSError."""
        with open(self._link, "r+b") as file:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, count)

    def close(self) -> None:
        os.close(self._handle)

    @property
    def _link(self) -> str:
        return f"/proc/self/fd/{self._handle}"


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
        _allocate_lock(folder / LOCK)
        # A map size of 0 stands for the one that the store was made with.
        with lmdb.open(str(folder), map_size=0, readonly=True, readahead=False) as store:
            _whole(store, folder)
            with store.begin() as transaction:
                yield Snapshot(transaction, _used_bytes(store), store.info()["map_size"])
    except (lmdb.Error, OSError) as error:
        raise SetupError("cache", folder, str(error)) from error


def _allocate_lock(lock: Path) -> None:
    """Makes the lock file if there is none, and gives it all of its room. Raises OSError, but not where this process
    may not write: lmdb knows what that means."""
    try:
        status = lock.stat()
        if 0 < status.st_size <= 512 * status.st_blocks:  # another process may have it open, so that it is left alone
            return
    except FileNotFoundError:
        pass
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return
        raise
    try:
        os.posix_fallocate(file, 0, os.fstat(file).st_size or LOCK_BYTES)
    finally:
        os.close(file)


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
