"""Files in shared memory that this process writes payloads into again and again, for warm pages are ten times as
fast."""

import fcntl
import mmap
import os
import secrets
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from selector_proto import shared_memory as layout
from selector_proto.copying import copy_all, copy_threads, write, write_all
from selector_proto.files import try_lock

# So many requests in flight can have a file.
MAX_SLOTS = 8
# Sizes are rounded up to a multiple of this, so that a payload that grows a little still finds room.
_STEP = 1 << 20


class Slot:
    """One file of the ring, which is locked as long as it is open. Raises OSError."""

    def __init__(self, folder: int, threads: Executor) -> None:
        self._folder, self.name, self._threads = folder, layout.new_name(), threads
        self._file = layout.open_within(folder, self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._room = 0
        self._map: mmap.mmap | None = None  # its pages stay warm, and are touched under the lease only
        self.generation = secrets.randbits(63)
        try:
            if not try_lock(self._file):
                raise BlockingIOError(f"{self.name} is locked by another process")
            os.fchmod(self._file, 0o640)  # the sidecar may be another user of the folder's group
        except OSError:
            self.remove()
            raise

    def write(self, parts: Sequence[memoryview], size: int) -> None:
        """Puts a payload of `size` bytes into the file under a new generation."""
        status = os.fstat(self._file)
        if status.st_nlink == 0:
            raise FileNotFoundError(f"{self.name} was removed")
        if _room(status) < max(size, self._room):
            self._room, self._map = -(-size // _STEP) * _STEP, None
            # This is where a full folder raises, for to touch mapped pages that it lacks would end this process.
            os.posix_fallocate(self._file, 0, layout.PAYLOAD_OFFSET + self._room)
        self._head(layout.Header(0, 0))
        with self._alone() as alone:
            if alone:
                copy_all(self._mapped(size), parts, self._threads)
            else:
                write_all(self._file, parts, layout.PAYLOAD_OFFSET, self._threads)
        self.generation = self.generation % (2**64 - 1) + 1
        self._head(layout.Header(self.generation, size))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yields whether nobody else has the file open, nor can open or truncate it meanwhile: a write lease makes
        whoever tries wait. Without a lease, writing to mapped memory could end this process, because touching pages of
        a truncated file is a bus error."""
        try:
            # The kernel announces by a signal that somebody waits for the lease. This signal does nothing, where the
            # default one would end the process. Giving a lease back resets the choice.
            fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:  # the sidecar still reads the file, or this system has no leases
            yield False
            return
        try:
            yield _room(os.fstat(self._file)) >= self._room
        finally:
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def _mapped(self, size: int) -> memoryview:
        if self._map is None:
            self._map = mmap.mmap(self._file, layout.PAYLOAD_OFFSET + self._room)
        return memoryview(self._map)[layout.PAYLOAD_OFFSET : layout.PAYLOAD_OFFSET + size]

    def remove(self) -> None:
        """Deletes the file and closes it."""
        try:
            os.unlink(self.name, dir_fd=self._folder)
        except OSError:
            pass  # somebody else has deleted it
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the file and leaves it to the process that it belongs to."""
        self._map = None
        os.close(self._file)

    def _head(self, header: layout.Header) -> None:
        write(self._file, memoryview(header.encode()), 0)


class Ring:
    """The files of one process in one folder. Several threads may use it. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(copy_threads(), thread_name_prefix="selector-shared-memory")
        self._free: list[Slot] = []
        self._closed, self._owner = False, os.getpid()
        self._all: set[Slot] = set()
        self._end = weakref.finalize(self, _remove, os.getpid(), self._folder, self._all)
        layout.sweep(self._folder)

    def take(self) -> Slot | None:
        """Returns a slot for one request, or None if all are in use."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._closed or len(self._all) == MAX_SLOTS:
                return None
            slot = Slot(self._folder, self._threads)
            self._all.add(slot)
            return slot

    def give(self, slot: Slot) -> None:
        """Takes a slot back once its request has ended, answered or not. A late reader of the old payload cannot take
        the next one for it, because that has another generation."""
        with self._lock:
            if not self._closed:
                self._free.append(slot)
                return
            self._all.discard(slot)
            slot.remove()
            if not self._all:
                self._end()

    def drop(self, slot: Slot) -> None:
        """Removes a slot whose file is of no use any more."""
        with self._lock:
            if slot in self._all:
                self._all.remove(slot)
                slot.remove()

    def close(self) -> None:
        """Removes the files; those that are in use go when their requests end."""
        if self._owner != os.getpid():  # this is a forked child, and the files are its parent's
            self._end()
            return
        with self._lock:
            self._closed = True
            for slot in self._free:
                self._all.discard(slot)
                slot.remove()
            self._free.clear()
            if not self._all:
                self._end()


def _room(status: os.stat_result) -> int:
    """Returns how many bytes of payload a file has room for; where it was cut and made long again, it has none."""
    return min(status.st_size, 512 * status.st_blocks) - layout.PAYLOAD_OFFSET


def _remove(owner: int, folder: int, slots: set[Slot]) -> None:
    for slot in slots:
        slot.remove() if os.getpid() == owner else slot.abandon()
    slots.clear()
    os.close(folder)
