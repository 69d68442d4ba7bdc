"""Weights in a folder that both sides see, for those without Redis.

There is one file per key, replaced whole by a rename, so a reader never sees half a value. What changes an old value
does so under a lock, so several publishers may share the folder. Readers write nothing: they may mount it read-only.
Files do not expire.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from selector_proto import files
from selector_proto.weights.layout import Keys, outranks
from selector_proto.weights.link import HIDDEN, LinkError, LinkOptions, masked, split
from selector_proto.weights.store import StoreFull, StoreRefused, StoreUnavailable

FORMS = "file:///folder"
LOCK_SECONDS = 10.0
# A value that is read whole is at most so long: owner, counter and pointer are much shorter.
MAX_VALUE_BYTES = 1 << 16
_VALUE = ".value"
_LOGIN = ("ca_file", "certificate_file", "key_file", "username", "password_file", "sentinel_password_file")


def open_folder(url: str, options: LinkOptions, write: bool) -> "FolderStore":
    """The folder at `url`, which must exist, and be writable if `write`. Raises LinkError."""
    parts, shown = split(url), masked(url)
    if parts is None or parts.netloc not in ("", "localhost") or parts.query or not parts.path.startswith("/"):
        raise LinkError(shown, "must be file:///folder, a whole path and nothing else")
    folder = unquote(parts.path)
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for a name that is too long
        raise LinkError(shown, "must be a folder that exists")
    for name in _LOGIN:
        if (value := getattr(options, name)) is not None:
            raise LinkError(HIDDEN if name == "username" else value, "a folder takes none", name)
    return FolderStore(folder, write=write)


class FolderStore:
    """A `Store` in one folder."""

    def __init__(self, folder: str | Path, *, write: bool = False) -> None:
        """`write` tries at once whether the folder can be written. Raises LinkError."""
        self._folder, self._writes = Path(folder), write
        if write:
            try:
                files.sweep_unfinished(self._folder)
            except OSError as error:
                raise LinkError(self._folder, f"must be a folder that can be written: {error.strerror}") from None

    def get(self, key: str) -> bytes | None:
        """The value, at most MAX_VALUE_BYTES of it; None if there is none."""
        with self._errors():
            try:
                with files.opened(self._file(key)) as stream:
                    return stream.read(MAX_VALUE_BYTES)
            except FileNotFoundError:
                self._must_exist()
                return None

    def first_bytes(self, key: str, count: int) -> bytes:
        with self._errors():
            try:
                with files.opened(self._file(key)) as stream:
                    return stream.read(count)
            except FileNotFoundError:
                self._must_exist()
                return b""

    def put_all(self, items: Iterable[tuple[str, memoryview]], ttl: int) -> None:  # noqa: ARG002 - nothing expires
        for key, value in items:
            with self._errors():
                self._write(key, value)

    def read_into(self, keys: Sequence[str], rooms: Sequence[memoryview]) -> Iterator[int]:
        for key, room in zip(keys, rooms, strict=True):
            with self._errors():
                length = self._fill(key, room)
            yield length
            if length > len(room):
                return

    def _fill(self, key: str, room: memoryview) -> int:
        try:
            with files.opened(self._file(key)) as stream:
                end = 0
                while count := stream.readinto(room[end:]):
                    end += count
                return end + len(stream.read(1))
        except FileNotFoundError:
            self._must_exist()
            return 0

    def delete(self, *keys: str) -> int:
        count = 0
        with self._errors():
            for key in keys:
                try:
                    self._file(key).unlink()
                    count += 1
                except FileNotFoundError:
                    self._must_exist()
        return count

    def next_version(self, keys: Keys, owner: str, above: int, ttl: int) -> int:  # noqa: ARG002 - nothing expires
        with self.locked():
            if not self._owns(keys, owner):
                return -1
            number = max(self._number(keys.counter), self._number(keys.pointer), above) + 1
            # A counter that came back empty after a power cut would stop the publisher.
            self._write(keys.counter, str(number).encode(), durable=True)
            return number

    def move_pointer(self, keys: Keys, owner: str, version: int, manifest: bytes, ttl: int) -> int:  # noqa: ARG002
        with self.locked():
            if not self._owns(keys, owner):
                return -1
            if version <= (now := self._number(keys.pointer)):
                return now
            self._write(keys.manifest(version), manifest)
            self._write(keys.pointer, str(version).encode(), durable=True)
            return version

    def renew(self, names: Sequence[str], ttl: int) -> bool:  # noqa: ARG002 - nothing expires
        with self._errors():
            return all(self._file(name).exists() for name in names)

    def left_behind(self, keys: Keys) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        with self._errors():
            for name in os.listdir(self._folder):
                key = unquote(name.removesuffix(_VALUE))
                if name.endswith(_VALUE) and (version := keys.version_of(key)) is not None:
                    found.setdefault(version, []).append(key)
        return found

    def clock(self, key: str) -> float | None:  # noqa: ARG002 - a folder has one clock
        """That of the file system, which a server may keep: it dates a new file. Readers make none."""
        if not self._writes:
            return None
        with self._errors():
            return files.clock(self._folder)

    def danger(self, key: str) -> str:  # noqa: ARG002 - no key of a folder is in danger
        """There is none: a folder forgets nothing by itself."""
        return ""

    def listen(self, channel: str) -> None:
        """Nothing is announced in a folder."""

    def close(self) -> None:
        """Nothing is held open between calls."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The caller is alone among all who take this lock, in this process and others; it ends with its holder. Raises
        StoreUnavailable if another holds it for LOCK_SECONDS."""
        with self._errors(), files.locked(self._folder / ".lock", LOCK_SECONDS, 0o644) as held:
            if not held:
                raise StoreUnavailable(f"folder {self._folder}: locked by another for {LOCK_SECONDS:g} s")
            yield

    def _owns(self, keys: Keys, owner: str) -> bool:
        """Whether `owner` may go on; it owns the run from now on."""
        if outranks(found := self.get(keys.owner), owner):
            return False
        if found != owner.encode():
            self._write(keys.owner, owner.encode())
        return True

    def _number(self, key: str) -> int:
        text = self.get(key) or b"0"
        if not text.isdigit() or len(text) > 18:
            raise StoreRefused(f"folder {self._folder}: {key} holds {text[:40]!r}, not a number")
        return int(text)

    def _write(self, key: str, value: bytes | memoryview, durable: bool = False) -> None:
        files.replace(self._file(key), value, 0o644, durable=durable)

    def _file(self, key: str) -> Path:
        # No key leads out of the folder ('/' becomes %2F, '..' has a suffix), nor to the lock or unfinished files.
        return self._folder / (quote(key, safe="") + _VALUE)

    def _must_exist(self) -> None:
        """A volume that is gone must not look like one where nothing was published."""
        if not self._folder.is_dir():
            raise StoreUnavailable(f"folder {self._folder}: it is gone")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises the operating system's errors as StoreErrors."""
        try:
            yield
        except OSError as error:
            kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnavailable
            raise kind(f"folder {self._folder}: {error.strerror or type(error).__name__}") from error
