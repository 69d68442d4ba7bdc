"""The reference's embeddings by sample id, on disk: a frozen model encodes a sample once.

One LMDB store may hold several references: a key begins with the reference's fingerprint, so another one never meets
these entries. Embeddings are kept normalised, in float16, with a checksum. Nothing that goes wrong here stops a
request: what cannot be read is encoded again.
"""

import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

import lmdb
import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.lmdb_store import DATA, Store, checked
from selector_server.errors import SetupError

log = logging.getLogger(__name__)

# Batches of embeddings that wait to be written; one more is dropped, and encoded again in the next epoch.
PENDING_WRITES = 4
_HEADER = b"h"  # + fingerprint -> JSON about the reference
_RECORD = b"r"  # + fingerprint + id -> CRC-32, image, text
_CRC = struct.Struct("<I")


def integer_key(number: int) -> bytes:
    """The id of a sample that is called by a 64-bit integer; never that of a string."""
    return b"i" + number.to_bytes(8, "little", signed=True)


def string_key(text: str | bytes) -> bytes:
    """The id of a sample that is called by a string, or by its UTF-8 bytes, at most MAX_ID_BYTES."""
    return b"s" + (text.encode() if isinstance(text, str) else text)


@dataclass(frozen=True)
class Found:
    """Which of B samples are known (bool [B]), and their embeddings, float16 [known, D]."""

    known: NDArray[np.bool_]
    image: NDArray[np.float16]
    text: NDArray[np.float16]


@dataclass(frozen=True)
class Held:
    """One reference's part of a store."""

    name: str
    fingerprint: str
    width: int
    entries: int


@dataclass(frozen=True)
class Stat:
    """What a store holds, and the largest size that it was ever opened with."""

    used_bytes: int
    max_bytes: int
    references: list[Held]


class ReferenceCache:
    """One reference's entries in the store at `folder`. `on_problem(reason)` is told of whatever is wrong: "corrupt",
    "full", "busy" or "failed"."""

    def __init__(
        self,
        folder: Path,
        name: str,
        fingerprint: str,
        width: int,
        max_bytes: int,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._width, self._on_problem = width, on_problem
        tag = bytes.fromhex(fingerprint)[:16]
        self._prefix = _RECORD + tag
        self._store = Store(folder, max_bytes, lambda: on_problem("corrupt"))
        self._full = False
        self.problem = ""  # the last one, in words
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._pending = BoundedSemaphore(PENDING_WRITES)
        about = {"name": name, "fingerprint": fingerprint, "width": width}
        try:
            self._store.run(lambda transaction: transaction.put(_HEADER + tag, json.dumps(about).encode()), write=True)
        except lmdb.Error as error:
            raise SetupError("cache", folder, str(error)) from error

    def find(self, ids: Sequence[bytes]) -> Found:
        """Looks up B ids. Unreadable entries count as unknown."""
        size = 4 * self._width  # two vectors of float16
        rows, known = np.empty((len(ids), size), np.uint8), np.zeros(len(ids), np.bool_)

        def look_up(transaction: lmdb.Transaction) -> None:
            for index, key in enumerate(ids):
                value = transaction.get(self._prefix + key)
                if value is None:
                    continue
                if len(value) != _CRC.size + size or zlib.crc32(value[_CRC.size :]) != _CRC.unpack_from(value)[0]:
                    self._problem("corrupt", f"entry of sample {key[:40]!r}")
                    continue
                rows[index] = np.frombuffer(value, np.uint8, offset=_CRC.size)
                known[index] = True

        try:
            self._store.run(look_up)
        except lmdb.Error as error:
            self._problem("corrupt" if isinstance(error, lmdb.CorruptedError) else "failed", str(error))
        both = rows[known].view(np.float16)
        return Found(known, both[:, : self._width], both[:, self._width :])

    def put(self, ids: Sequence[bytes], image: NDArray[np.float16], text: NDArray[np.float16]) -> bool:
        """Writes normalised embeddings [B, D]; True once they are on disk."""
        rows = np.concatenate([image, text], axis=1)

        def write(transaction: lmdb.Transaction) -> None:
            for key, row in zip(ids, rows, strict=True):
                value = row.tobytes()
                transaction.put(self._prefix + key, _CRC.pack(zlib.crc32(value)) + value)

        try:
            self._store.run(write, write=True)
        except lmdb.MapFullError:
            if not self._full:
                self._problem("full", "no more samples are kept; raise --cache-bytes")
            self._full = True
            return False
        except lmdb.Error as error:
            self._problem("failed", str(error))
            return False
        return True

    def put_soon(self, ids: Sequence[bytes], image: NDArray[np.float16], text: NDArray[np.float16]) -> None:
        """The same on a thread of its own: a selection does not wait for a disk."""
        if self._full:
            return
        if not self._pending.acquire(blocking=False):
            self._problem("busy", f"{len(ids)} samples are not kept, the disk is too slow")
            return

        def write() -> None:
            try:
                self.put(ids, image, text)
            finally:
                self._pending.release()

        self._writer.submit(write)

    def usage(self) -> tuple[int, int]:
        """Entries of the store, of every reference, and its bytes; zeros if it cannot be read."""
        try:
            return self._store.usage()
        except lmdb.Error:
            return 0, 0

    def close(self) -> None:
        """Writes what is waiting."""
        self._writer.shutdown()
        self._store.close()

    def _problem(self, reason: str, what: str) -> None:
        self.problem = f"{reason}: {what}"
        log.warning("reference cache: %s", self.problem)
        self._on_problem(reason)


def stat(folder: Path) -> Stat:
    """What the store at `folder` holds; reads every key. Raises SetupError."""
    if not (folder / DATA).exists():
        raise SetupError("cache", folder, f"must be a folder with a {DATA}")
    try:
        # A map size of 0 is the one that the store was made with.
        with lmdb.open(str(folder), map_size=0, readonly=True, readahead=False) as store:
            checked(store, folder)
            with store.begin() as transaction:
                info = store.info()
                used = (info["last_pgno"] + 1) * store.stat()["psize"]
                return Stat(used, info["map_size"], list(_references(transaction)))
    except (lmdb.Error, OSError) as error:
        raise SetupError("cache", folder, str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError("cache", folder, f"is a store of something else: {error!r}") from error


def _references(transaction: lmdb.Transaction) -> Iterator[Held]:
    cursor = transaction.cursor()
    headers: list[tuple[bytes, bytes]] = []
    if cursor.set_range(_HEADER):
        for key, value in cursor:
            if not bytes(key).startswith(_HEADER):
                break
            headers.append((bytes(key).removeprefix(_HEADER), bytes(value)))
    for tag, value in headers:
        about, entries = json.loads(value), 0
        if cursor.set_range(_RECORD + tag):
            for key in cursor.iternext(values=False):
                if not bytes(key).startswith(_RECORD + tag):
                    break
                entries += 1
        held = Held(about["name"], about["fingerprint"], about["width"], entries)
        if not (isinstance(held.name, str) and isinstance(held.fingerprint, str) and type(held.width) is int):
            raise TypeError(f"header {str(about)[:100]}")
        yield held
