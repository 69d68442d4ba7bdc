"""Files in shared memory that this process writes payloads into, again and again: warm pages are ten times as fast."""

import fcntl
import os
import secrets
import threading
import weakref
from collections.abc import Sequence

from selector_proto import shared_memory as layout

# Requests in flight that can have a file.
MAX_SLOTS = 8
# Sizes are rounded up to this, so that a payload that grows a little finds room.
_STEP = 1 << 20


class Slot:
    """One file of the ring, locked as long as it is open. Raises OSError."""

    def __init__(self, folder: int) -> None:
        self._folder, self.name = folder, layout.new_name()
        self._file = layout.open_within(folder, self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._room = 0
        self.generation = secrets.randbits(63)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._file, 0o640)  # the sidecar may be another user of the folder's group
        except OSError:
            self.remove()
            raise

    def write(self, parts: Sequence[memoryview], size: int) -> None:
        """Puts a payload of `size` bytes into the file under a new generation."""
        status = os.fstat(self._file)
        if status.st_nlink == 0:
            raise FileNotFoundError(f"{self.name} was removed")
        if status.st_size < layout.PAYLOAD_OFFSET + max(size, self._room):
            self._room = -(-size // _STEP) * _STEP
            # A full folder says so here.
            os.posix_fallocate(self._file, 0, layout.PAYLOAD_OFFSET + self._room)
        self._head(layout.Header(0, 0))
        layout.write_all(self._file, parts, layout.PAYLOAD_OFFSET)
        self.generation = self.generation % (2**64 - 1) + 1
        self._head(layout.Header(self.generation, size))

    def remove(self) -> None:
        try:
            os.unlink(self.name, dir_fd=self._folder)
        except OSError:
            pass  # somebody else did
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the file, which stays another process's."""
        os.close(self._file)

    def _head(self, header: layout.Header) -> None:
        layout.write_all(self._file, [memoryview(header.encode())], 0)


class Ring:
    """The files of one process in one folder; safe to use from several threads. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._free: list[Slot] = []
        self._all: set[Slot] = set()
        self._end = weakref.finalize(self, _remove, os.getpid(), self._folder, self._all)
        layout.sweep(self._folder)

    def take(self) -> Slot | None:
        """A slot for one request; None if all are in use."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if len(self._all) == MAX_SLOTS:
                return None
            slot = Slot(self._folder)
            self._all.add(slot)
            return slot

    def give(self, slot: Slot) -> None:
        """The request has ended, answered or not: what is written next has another generation."""
        with self._lock:
            if self._end.alive:
                self._free.append(slot)

    def drop(self, slot: Slot) -> None:
        """The file is of no use any more."""
        with self._lock:
            if slot in self._all:
                self._all.remove(slot)
                slot.remove()

    def close(self) -> None:
        with self._lock:
            self._end()


def _remove(owner: int, folder: int, slots: set[Slot]) -> None:
    for slot in slots:
        slot.remove() if os.getpid() == owner else slot.abandon()
    slots.clear()
    os.close(folder)
