"""Files of pools and scores, on this machine or in a store that fsspec reaches: whatever is opened, listed or written
passes here, with retries and with errors of one line. A place is a path, or a URL such as s3://bucket/shards/0.tar."""

import errno
import io
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast
from uuid import uuid4

from selector_server.errors import SelectorError, SetupError
from selector_tools.mistakes import in_one_line

# What may pass is tried again after so many seconds, each up to half of that longer.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# A store that says nothing for so long is asked again.
SILENT_SECONDS = 60.0
# A stream asks a store for so many bytes at a time.
BLOCK = 8 << 20
PART = ".part"  # how the names of files end that are being written
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_PASSING_STATUSES = (408, 425, 429)
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG)

T = TypeVar("T")
Kind = Literal["file", "folder"]


def is_url(place: str) -> bool:
    """Tells whether a place is a URL. Whatever is no URL is a path."""
    return _URL.match(place) is not None


def bare(place: str) -> str:
    """Returns a place without what a URL asks for after its path, such as a signature."""
    return place.partition("?")[0] if is_url(place) else place


def joined(folder: str, name: str) -> str:
    """Returns the place of what is called `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def kind(place: str, flag: str = "--pool") -> Kind | None:
    """Tells what is at a place; None if there is nothing. Raises SetupError, which names `flag`, as all of these do."""
    if not is_url(place):
        return "folder" if os.path.isdir(place) else "file" if os.path.isfile(place) else None
    store, path = _store(place, flag)

    def look() -> Kind | None:
        try:
            return "folder" if store.info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return None

    return _tried(look, place, flag)


def stamp(place: str, flag: str = "--pool") -> str:
    """Returns what differs once the file at a place is another: its size, and what the store says of its version."""
    if not is_url(place):
        found = _tried(lambda: os.stat(place), place, flag)
        return f"{found.st_size} {found.st_mtime_ns}"
    store, path = _store(place, flag)
    about = _tried(lambda: store.info(path), place, flag)
    names = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "created")
    return f"{about.get('size')} {next((about[name] for name in names if about.get(name)), '')}"


def files_in(folder: str, flag: str = "--pool") -> list[str]:
    """Returns the places of the files that are right in a folder, sorted; none if there is no folder."""
    if not is_url(folder):
        return [str(each) for each in sorted(Path(folder).iterdir()) if each.is_file()] if Path(folder).is_dir() else []
    store, path = _store(folder, flag)

    def look() -> list[dict[str, Any]]:
        try:
            return cast(list[dict[str, Any]], store.ls(path, detail=True))
        except FileNotFoundError:
            return []

    found = _tried(look, folder, flag)
    return sorted(str(store.unstrip_protocol(each["name"])) for each in found if each["type"] == "file")


def matching(pattern: str, flag: str = "--pool") -> list[str]:
    """Returns the places that a pattern with *, ? or [] matches, sorted."""
    if not is_url(pattern):
        return sorted(glob(pattern))
    store, path = _store(pattern, flag)
    found = _tried(lambda: store.glob(path), pattern, flag)
    return sorted(str(store.unstrip_protocol(each)) for each in found)


def opened(place: str, flag: str = "--pool", block: int = BLOCK) -> BinaryIO:
    """Opens a file for reading from any position. A store is asked for ranges of `block` bytes, each with retries, so
    that a connection that breaks loses nothing."""
    if not is_url(place):
        return cast(BinaryIO, _tried(lambda: open(place, "rb"), place, flag))
    store, path = _store(place, flag)
    size = _tried(lambda: store.info(path)["size"], place, flag)
    if size is None:
        raise SetupError(flag, place, "its server does not say how large it is")
    return cast(BinaryIO, io.BufferedReader(_Ranges(store, path, place, flag, int(size)), block))


@contextmanager
def written(place: str, flag: str = "--out") -> Iterator[BinaryIO]:
    """Yields a file, all of which is at `place` after the block. If the block raises, or the process is killed,
    nothing is there, or what was there before."""
    folder = tempfile.gettempdir() if is_url(place) else os.path.dirname(place) or "."
    part = os.path.join(folder, f".{uuid4().hex}{PART}")
    try:
        with _reported(place, flag):
            os.makedirs(folder, exist_ok=True)
            with open(part, "wb") as file:
                yield file
                file.flush()
                if not is_url(place):
                    os.fsync(file.fileno())
            if not is_url(place):
                os.replace(part, place)
                return
        store, path = _store(place, flag)
        _tried(lambda: _sent(store, part, path), place, flag)
    finally:
        Path(part).unlink(missing_ok=True)


def remove(place: str, flag: str = "--out") -> None:
    """Removes a file, if it is there."""
    if not is_url(place):
        _tried(lambda: Path(place).unlink(missing_ok=True), place, flag)
        return
    store, path = _store(place, flag)

    def drop() -> None:
        with suppress(FileNotFoundError):
            store.rm_file(path)

    _tried(drop, place, flag)


def sweep(folder: str) -> None:
    """Removes what writers that were killed have left in a folder. Nobody may be writing there."""
    for part in () if is_url(folder) else Path(folder).glob(f".*{PART}"):
        part.unlink(missing_ok=True)


def _sent(store: Any, part: str, path: str) -> None:
    if store.protocol == "memory":  # it knows no folders that nobody made
        store.makedirs(os.path.dirname(path), exist_ok=True)
    store.put_file(part, path)


def _store(place: str, flag: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - a local pool needs none

    try:
        store, path = url_to_fs(place, use_listings_cache=False)  # what it knew may have changed since
    except ImportError as error:
        raise SetupError(flag, place, f"its driver is not installed: {_line(error)}") from error
    except Exception as error:  # drivers raise whatever their libraries do
        raise SetupError(flag, place, f"cannot be reached: {_line(error)}") from error
    return store, path


class _Ranges(io.RawIOBase):
    """A file in a store, read by ranges."""

    def __init__(self, store: Any, path: str, place: str, flag: str, size: int) -> None:
        self._store, self._path, self._place, self._flag, self.size = store, path, place, flag, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        first, last = self._at, min(self._at + len(buffer), self.size)
        if first >= last:
            return 0
        silent = {"timeout": SILENT_SECONDS} if self._store.async_impl else {}

        def fetch() -> bytes:
            found = cast(bytes, self._store.cat_file(self._path, start=first, end=last, **silent))
            if len(found) > last - first:
                raise SetupError(self._flag, self._place, "its server gives no ranges of files, only whole ones")
            if len(found) < last - first:
                raise ConnectionResetError(f"bytes {first} to {last} came as {len(found)}")
            return found

        content = _tried(fetch, self._place, self._flag)
        buffer[: len(content)] = content
        self._at = last
        return len(content)


def _tried(work: Callable[[], T], place: str, flag: str) -> T:
    """Does the work, and again if it fails by what may pass. Raises SetupError."""
    for pause in (*RETRY_SECONDS, None):
        try:
            return work()
        except (SelectorError, MemoryError):
            raise
        except Exception as error:  # drivers raise whatever their libraries do
            if pause is None or not _may_pass(error):
                tries = "" if pause is not None else f" (tried {len(RETRY_SECONDS) + 1} times)"
                raise SetupError(flag, place, f"{_line(error)}{tries}") from error
        time.sleep(pause * random.uniform(1, 1.5))  # noqa: S311 - spreads those who wait
    raise AssertionError


@contextmanager
def _reported(place: str, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(flag, place, f"cannot be written: {_line(error)}") from error


def _may_pass(error: BaseException) -> bool:
    """Tells whether the same may succeed in a while: a timeout, a broken connection, a store that is overloaded."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUSES
    if isinstance(error, _LASTING) or getattr(error, "errno", None) in _LASTING_NUMBERS:
        return False
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("aiohttp", "botocore", "fsspec", "requests", "asyncio")


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that a driver's error stands for, if it tells one."""
    for each in (error, error.__cause__):  # s3fs raises an OSError from botocore's own
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return cast(int | None, response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    found = getattr(error, "status", None) if hasattr(error, "status") else getattr(error, "code", None)
    return found if isinstance(found, int) else None


def _line(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there"
    named = isinstance(error, OSError) and error.strerror
    return str(named) if named else in_one_line(error)
