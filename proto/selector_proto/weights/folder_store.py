"""The few Redis commands that weights need, on a folder that both sides see, for those without Redis.

One file per key, replaced whole by a rename, so a reader never sees half a value; what changes an old value does so
under a lock, so several publishers may share the folder. Readers write nothing: they may mount it read-only.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import redis

from selector_proto.files import opened
from selector_proto.weights.layout import Keys, outranks
from selector_proto.weights.redis_url import LinkError

LOCK_SECONDS = 10.0
# Of a value that is read whole: owner, counter and pointer are much shorter.
MAX_VALUE_BYTES = 1 << 16
_VALUE, _UNFINISHED = ".value", ".unfinished"
# Files that a killed publisher left half written.
_STALE_SECONDS = 3600


class FolderError(redis.RedisError):
    """The folder cannot be read or written. A RedisError, so that whoever waits for Redis waits for it too."""


class FolderStore:
    """Values by key in one folder. Methods raise FolderError."""

    def __init__(self, folder: str | Path, *, write: bool = False) -> None:
        """`write` tries at once whether the folder can be written. Raises LinkError."""
        self._folder = Path(folder)
        if write:
            try:
                self._sweep()
                tempfile.TemporaryFile(dir=self._folder).close()
            except OSError as error:
                raise LinkError(self._folder, f"must be a folder that can be written: {error.strerror}") from None

    def get(self, key: str) -> bytes | None:
        """The value, at most MAX_VALUE_BYTES of it; None if there is none."""
        with self._errors():
            try:
                with opened(self._file(key)) as stream:
                    return stream.read(MAX_VALUE_BYTES)
            except FileNotFoundError:
                self._must_exist()
                return None

    def getrange(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, both counted from 0 and included, or as many of them as there are."""
        with self._errors():
            try:
                with opened(self._file(key)) as stream:
                    stream.seek(start)
                    return stream.read(end - start + 1)
            except FileNotFoundError:
                self._must_exist()
                return b""

    def set(self, key: str, value: bytes | memoryview | str | int) -> None:
        """Replaces the value whole."""
        with self._errors():
            self._write(key, str(value).encode() if isinstance(value, str | int) else value)

    def set_all(self, items: Iterable[tuple[str, memoryview]], *, ex: int) -> None:  # noqa: ARG002
        """Replaces many values, one after the other, each whole. `ex`, the seconds after which Redis forgets them, has
        no effect: a file stays."""
        for key, value in items:
            self.set(key, value)

    def fill(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
        """Puts the value of each key at the start of its room and yields its length, 0 if there is none. It ends after
        the first that does not fit, of which it yields a length greater than the room's."""
        for key, room in zip(keys, rooms, strict=True):
            with self._errors():
                length = self._fill(key, room)
            yield length
            if length > len(room):
                return

    def _fill(self, key: str, room: memoryview) -> int:
        try:
            with opened(self._file(key)) as stream:
                end = 0
                while count := stream.readinto(room[end:]):
                    end += count
                return end + len(stream.read(1))
        except FileNotFoundError:
            self._must_exist()
            return 0

    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int:  # noqa: ARG002 - nothing expires
        """The next version, higher than `above` and than all before; -1 if another publisher owns the run. Otherwise
        `owner` (epoch and token) owns it from now on."""
        with self._errors(), self.locked():
            if not self._owns(keys, owner):
                return -1
            number = max(self._number(keys.counter), self._number(keys.pointer), above) + 1
            self._write(keys.counter, str(number).encode(), durable=True)
            return number

    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int:  # noqa: ARG002
        """Puts the manifest and moves the pointer to it, forward only; returns the version that it points to, -1 as
        above."""
        with self._errors(), self.locked():
            if not self._owns(keys, owner):
                return -1
            if version <= (now := self._number(keys.pointer)):
                return now
            self._write(keys.manifest(version), manifest)
            self._write(keys.pointer, str(version).encode(), durable=True)
            return version

    def _owns(self, keys: Keys, owner: str) -> bool:
        if outranks(found := self.get(keys.owner), owner):
            return False
        if found != owner.encode():
            self._write(keys.owner, owner.encode())
        return True

    def left_behind(self, keys: Keys) -> dict[int, list[str]]:
        """Keys of versions that are in the folder, by version: of former publishers, if asked before the first is
        published."""
        found: dict[int, list[str]] = {}
        with self._errors():
            for name in os.listdir(self._folder):
                key = unquote(name.removesuffix(_VALUE))
                if name.endswith(_VALUE) and (version := keys.version_of(key)) is not None:
                    found.setdefault(version, []).append(key)
        return found

    def renew(self, names: Sequence[str], ttl: int) -> bool:  # noqa: ARG002 - nothing expires
        """Whether all keys are there."""
        with self._errors():
            return all(self._file(name).exists() for name in names)

    def danger(self) -> str:
        """A folder forgets nothing by itself."""
        return ""

    def listen(self, channel: str) -> None:
        """Nothing announces anything in a folder."""

    def unlink(self, *keys: str) -> int:
        """Forgets the keys; returns how many of them there were."""
        count = 0
        with self._errors():
            for key in keys:
                try:
                    self._file(key).unlink()
                    count += 1
                except FileNotFoundError:
                    self._must_exist()
        return count

    def close(self) -> None:
        """Nothing is held open between calls."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all who take this lock, in this process and others; it ends with its holder."""
        with self._errors():
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not self._take(lock):
                if time.monotonic() > deadline:
                    raise FolderError(f"folder {self._folder}: locked by another for {LOCK_SECONDS:g} s")
                time.sleep(0.005)
            yield
        finally:
            os.close(lock)

    def _take(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _number(self, key: str) -> int:
        text = self.get(key) or b"0"
        if not text.isdigit() or len(text) > 18:
            raise FolderError(f"folder {self._folder}: {key} holds {text[:40]!r}, not a number")
        return int(text)

    def _write(self, key: str, value: bytes | memoryview, durable: bool = False) -> None:
        handle, name = tempfile.mkstemp(_UNFINISHED, ".", self._folder)
        try:
            with open(handle, "wb") as stream:
                stream.write(value)
                os.fchmod(handle, 0o644)
                if durable:  # a counter that comes back empty after a power cut would stop the publisher
                    stream.flush()
                    os.fsync(handle)
            os.replace(name, self._file(key))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _file(self, key: str) -> Path:
        # No key leads out of the folder ('/' becomes %2F, '..' has a suffix), nor to the lock or unfinished files.
        return self._folder / (quote(key, safe="") + _VALUE)

    def _sweep(self) -> None:
        for file in self._folder.glob(f".*{_UNFINISHED}"):
            try:
                if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                continue  # another publisher was faster

    def _must_exist(self) -> None:
        """A volume that is gone must not look like one where nothing was published."""
        if not self._folder.is_dir():
            raise FolderError(f"folder {self._folder}: it is gone")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FolderError(f"folder {self._folder}: {error.strerror or type(error).__name__}") from error
