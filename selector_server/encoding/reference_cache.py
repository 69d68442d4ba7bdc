"""The reference's embeddings by sample id, on disk: a frozen model encodes a sample once.

One LMDB store may hold several references: a key begins with a tag of the reference's fingerprint and of the decoder's
version, so that another reference never meets these entries, nor does a version that decodes files to other pixels.
Embeddings are kept normalised, in float16, with a checksum. Nothing that goes wrong here stops a
request: what cannot be read is encoded again.
"""

import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import BoundedSemaphore
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.encoding.image_files import DECODER
from selector_server.encoding.lmdb_store import (
    LmdbStore,
    NoRoom,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    Transaction,
    snapshot,
)
from selector_server.errors import SetupError
from selector_server.sampling import Embedded

log = logging.getLogger(__name__)

# So many batches of embeddings may wait to be written. One more is dropped, and encoded again in the next epoch.
PENDING_WRITES = 4
# So long nothing is written after the disk turned out to be full.
DISK_PAUSE_SECONDS = 10.0
_HEADER = b"h"  # followed by a tag; the value is JSON about the reference
_RECORD = b"r"  # followed by a tag and an id; the value is a CRC-32, the image's and the text's embedding
_SHARD = b"s"  # followed by a tag and 16 bytes; the value is what `remember` was given
_CRC = struct.Struct("<I")


def tag(fingerprint: str, decoder: int = DECODER) -> bytes:
    """Returns the 16 bytes with which the keys of a reference's entries begin; the first decoder had none in them."""
    if decoder == 1:
        return bytes.fromhex(fingerprint)[:16]
    return hashlib.sha256(f"{fingerprint} decoder {decoder}".encode()).digest()[:16]


def integer_key(number: int) -> bytes:
    """Returns the key of a sample that is named by a 64-bit integer; it never equals that of a string."""
    return b"i" + number.to_bytes(8, "little", signed=True)


def string_key(text: str | bytes) -> bytes:
    """Returns the key of a sample that is named by a string, or by its UTF-8 bytes, of at most MAX_ID_BYTES."""
    return b"s" + (text.encode() if isinstance(text, str) else text)


def key_text(key: bytes) -> str:
    """Returns the id that a key stands for, as people read it."""
    kind, name = key[:1], key[1:]
    return str(int.from_bytes(name, "little", signed=True)) if kind == b"i" else name.decode(errors="replace")


@dataclass(frozen=True)
class Found:
    """What the cache knows of B samples: `known`, bool [B], says which, and `image` and `text`, float16 [known, D],
    are their embeddings in that order."""

    known: NDArray[np.bool_]
    image: NDArray[np.float16]
    text: NDArray[np.float16]

    def at(self, kept: NDArray[np.bool_]) -> "Found":
        """Returns the same of those samples that `kept`, bool [B], names."""
        if kept.all():
            return self
        rows = kept[self.known]
        return Found(self.known[kept], self.image[rows], self.text[rows])


@dataclass(frozen=True)
class Held:
    """One reference's part of a store, of files that one version of the decoder decoded."""

    name: str
    fingerprint: str
    width: int
    entries: int
    decoder: int = 1


@dataclass(frozen=True)
class Stat:
    """What a store holds, and the largest size that it was ever opened with."""

    used_bytes: int
    max_bytes: int
    references: list[Held]


class ReferenceCache:
    """One reference's entries in the store at `folder`; embeddings have `width` values. `on_problem(reason)` is called
    for whatever goes wrong: the reason is "corrupt", "full", "disk", "busy" or "failed". Raises SetupError if the store
    cannot be opened."""

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
        self._prefix, earlier = _RECORD + tag(fingerprint), tag(fingerprint, 1)
        self._shards = _SHARD + tag(fingerprint)
        self._store = LmdbStore(folder, max_bytes, lambda: on_problem("corrupt"))
        self._full, self._again = False, 0.0  # no more is kept, for ever or until this time of the monotonic clock
        self.problem = ""  # the last one, in words
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._pending = BoundedSemaphore(PENDING_WRITES)
        about = {"name": name, "fingerprint": fingerprint, "width": width, "decoder": DECODER}
        key, header = _HEADER + tag(fingerprint), json.dumps(about).encode()

        def begin(transaction: Transaction) -> bytes:
            if transaction.get(key) != header:  # else a full disk does not keep what is known from being used
                transaction.put(key, header)
            return b"" if transaction.get(_HEADER + earlier) is None else _RECORD + earlier

        try:
            self._earlier = self._store.run(begin, write=True)  # what entries of the first decoder begin with, if any
        except StoreFailed as error:
            raise SetupError("cache", folder, str(error)) from error

    @property
    def sample_bytes(self) -> int:
        """Bytes of what is known of one sample: two vectors of float16."""
        return 4 * self._width

    def find(self, ids: Sequence[bytes], alike: Callable[[int], bool] | None = None, *, wait: bool = False) -> Found:
        """Looks up B ids. An entry that cannot be read counts as unknown. `alike` tells of an index whether the first
        decoder made the same of that candidate's file as this one does; then an entry that it left is taken over,
        written by `put` if `wait` is set, else by `put_soon`. Without `alike` none is."""
        size = self.sample_bytes
        rows, known = np.empty((len(ids), size), np.uint8), np.zeros(len(ids), np.bool_)

        def read(transaction: Transaction, index: int, prefix: bytes) -> bool:
            value = transaction.get(prefix + ids[index])
            if value is None:
                return False
            if len(value) != _CRC.size + size or zlib.crc32(value[_CRC.size :]) != _CRC.unpack_from(value)[0]:
                self._problem("corrupt", f"entry of sample {ids[index][:40]!r}")
                return False
            rows[index] = np.frombuffer(value, np.uint8, offset=_CRC.size)
            return True

        def look_up(transaction: Transaction) -> list[int]:
            known[:] = [read(transaction, index, self._prefix) for index in range(len(ids))]
            if alike is None or not self._earlier:
                return []
            missing = np.flatnonzero(~known).tolist()
            taken = [index for index in missing if read(transaction, index, self._earlier) and alike(index)]
            known[taken] = True
            return taken

        taken: list[int] = []
        try:
            taken = self._store.run(look_up)
        except StoreFailed as error:
            self._problem("corrupt" if isinstance(error, StoreCorrupt) else "failed", str(error))
        if taken:
            write, both = self.put if wait else self.put_soon, rows[taken].view(np.float16)
            write([ids[index] for index in taken], both[:, : self._width], both[:, self._width :])
        both = rows[known].view(np.float16)
        return Found(known, both[:, : self._width], both[:, self._width :])

    def merge(
        self,
        ids: Sequence[bytes],
        found: Found,
        fresh: Embedded | None,
        scale: float,
        bias: float,
        device: torch.device,
        *,
        wait: bool = False,
    ) -> tuple[Embedded, bool]:
        """Returns the embeddings of all B samples, float32 [B, D] on `device`, and whether the new ones are kept.

        `ids` and `found` are those of all samples; `fresh` holds the embeddings of the unknown ones, [B - known, D] in
        their order, and is None if there are none. Fresh ones are rounded through float16 as if they came from the
        cache, so that the first epoch picks as the second one would. They are written by `put` if `wait` is set, else
        by `put_soon`. `scale` and `bias` are the reference's logit scale and bias.
        """
        known = torch.from_numpy(found.known)
        image, text = (torch.empty((len(ids), self._width), dtype=torch.float16, device=device) for _ in range(2))
        image[known], text[known] = (torch.from_numpy(part).to(device) for part in (found.image, found.text))
        kept = True
        if fresh is not None:
            image[~known], text[~known] = fresh.image.to(device).half(), fresh.text.to(device).half()
            write = self.put if wait else self.put_soon
            new = [key for key, hit in zip(ids, found.known.tolist(), strict=True) if not hit]
            kept = write(new, image[~known].cpu().numpy(), text[~known].cpu().numpy())
        return Embedded(image.float(), text.float(), scale, bias), kept

    def put(self, ids: Sequence[bytes], image: NDArray[np.float16], text: NDArray[np.float16]) -> bool:
        """Writes normalised embeddings [n, D]. Returns True once they are on disk, False if they cannot be kept."""
        rows = np.concatenate([image, text], axis=1)

        def write(transaction: Transaction) -> None:
            for key, row in zip(ids, rows, strict=True):
                value = row.tobytes()
                transaction.put(self._prefix + key, _CRC.pack(zlib.crc32(value)) + value)

        try:
            self._store.run(write, write=True)
        except StoreFull:
            if not self._full:
                self._problem("full", "no more samples are kept; raise --cache-bytes")
            self._full = True
            return False
        except NoRoom as error:
            self._again = monotonic() + DISK_PAUSE_SECONDS
            self._problem("disk", f"no samples are kept until there is room again: {error}")
            return False
        except StoreFailed as error:
            self._problem("corrupt" if isinstance(error, StoreCorrupt) else "failed", str(error))
            return False
        if self._again:
            self._again, self.problem = 0.0, ""
            log.info("reference cache: there is room again")
        return True

    def put_soon(self, ids: Sequence[bytes], image: NDArray[np.float16], text: NDArray[np.float16]) -> bool:
        """Does what `put` does on another thread, so that a selection does not wait for a disk. Returns False if the
        embeddings are dropped at once, because the store or the disk is full or the disk too slow."""
        if self._full or monotonic() < self._again:
            return False
        if not self._pending.acquire(blocking=False):
            self._problem("busy", f"{len(ids)} samples are not kept, the disk is too slow")
            return False

        def write() -> None:
            try:
                self.put(ids, image, text)
            finally:
                self._pending.release()

        self._writer.submit(write)
        return True

    def remember(self, key: bytes, value: bytes) -> None:
        """Keeps what whoever fills the cache wants to know again, by a key of 16 bytes. It is lost if the store is full
        or fails, which is no harm."""
        with suppress(StoreFailed):
            self._store.run(lambda transaction: transaction.put(self._shards + key, value), write=True)

    def recall(self, key: bytes) -> bytes | None:
        """Returns what was kept by this key for this reference and decoder, None if there is nothing."""

        def read(transaction: Transaction) -> bytes | None:
            value = transaction.get(self._shards + key)
            return None if value is None else bytes(value)  # what is found is only there during the transaction

        try:
            return self._store.run(read)
        except StoreFailed:
            return None

    def held(self, most: int) -> tuple[int, str]:
        """Returns how many entries of this reference the store holds, counted up to `most`, and the id of one as a
        text."""
        try:
            keys = self._store.run(lambda transaction: list(islice(_keys(transaction, self._prefix), most)))
        except StoreFailed:
            keys = []
        return len(keys), key_text(keys[0]) if keys else ""

    def usage(self) -> tuple[int, int]:
        """Returns how many samples the store holds, of every reference, and its bytes, and zeros if it cannot be
        read."""
        try:
            entries, size = self._store.usage()

            def others(transaction: Transaction) -> int:
                return sum(1 for prefix in (_HEADER, _SHARD) for _ in _keys(transaction, prefix))

            return entries - self._store.run(others), size
        except StoreFailed:
            return 0, 0

    def close(self) -> None:
        """Writes what is waiting, then closes the store."""
        self._writer.shutdown()
        self._store.close()

    def _problem(self, reason: str, what: str) -> None:
        self._on_problem(reason)
        if self.problem != (problem := f"{reason}: {what}"):  # what goes on is said once
            self.problem = problem
            log.warning("reference cache: %s", problem)


def _keys(transaction: Transaction, prefix: bytes) -> Iterator[bytes]:
    """Yields what follows `prefix` in the keys that begin with it."""
    cursor = transaction.cursor()
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if not bytes(key).startswith(prefix):
                return
            yield bytes(key).removeprefix(prefix)


def stat(folder: Path) -> Stat:
    """Tells what the store at `folder` holds; reads every key. Raises SetupError."""
    try:
        with snapshot(folder) as store:
            return Stat(store.used_bytes, store.max_bytes, list(_references(store.transaction)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError("cache", folder, f"is a store of something else: {error!r}") from error


def _references(transaction: Transaction) -> Iterator[Held]:
    cursor = transaction.cursor()
    headers: list[tuple[bytes, bytes]] = []
    if cursor.set_range(_HEADER):
        for key, value in cursor:
            if not bytes(key).startswith(_HEADER):
                break
            headers.append((bytes(key).removeprefix(_HEADER), bytes(value)))
    for mark, value in headers:
        about, entries = json.loads(value), 0
        if cursor.set_range(_RECORD + mark):
            for key in cursor.iternext(values=False):
                if not bytes(key).startswith(_RECORD + mark):
                    break
                entries += 1
        held = Held(about["name"], about["fingerprint"], about["width"], entries, about.get("decoder", 1))
        numbers = type(held.width) is int and type(held.decoder) is int
        if not (isinstance(held.name, str) and isinstance(held.fingerprint, str) and numbers):
            raise TypeError(f"header {str(about)[:100]}")
        yield held
