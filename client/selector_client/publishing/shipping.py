"""Ships versions of a run's weights to Redis; the publisher's side of docs/weight-sync.md."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import clock
from selector_proto.weights.layout import CHUNK_BYTES, FORMAT, Keys, digest, encode_manifest, epoch_of, outranks
from selector_proto.weights.store import Store, StoreError, StoreFull, StoreRefused

from selector_client.publishing.snapshot import Snapshot
from selector_client.publishing.wire_payload import Precision, WirePayload

log = logging.getLogger(__name__)

# So many threads cast and hash, and so many chunks may they be ahead of what is sent.
_THREADS = 2
_AHEAD = 6
# HELD versions more than those to keep stay for HOLD_SECONDS after they were the newest, for readers who need longer
# than from one publication to the next.
HELD, HOLD_SECONDS = 2, 600.0


class Fenced(Exception):
    """Another publisher owns the run: this one must not publish any more."""


class BaseLost(Exception):
    """The whole version that a partial one rests on is not stored any more: the next one must be whole."""


class Unsafe(Exception):
    """This Redis may throw away keys that are in use."""


@dataclass
class _Version:
    """What is stored of a version; `parts` are the keys of its chunks and of the clock that dates it. Once it is not
    the newest any more it may go at `until`, a time.monotonic(), but not while one that stays has it as its `base`."""

    number: int
    parts: list[str]
    manifest: bytes = b""
    blake3: bytes = b""
    base: int = 0
    until: float = 0.0


class Shipper:
    """One publisher's claim on one run. Methods raise StoreError, Fenced, BaseLost or Unsafe; not thread-safe.

    `keep` versions stay in Redis, and where there is room HELD more if they were the newest in the last HOLD_SECONDS;
    all keys die `ttl` seconds after the last `ship` or `refresh`.
    """

    def __init__(self, store: Store, keys: Keys, precision: Precision, keep: int, ttl: int) -> None:
        self._store, self._keys, self._precision, self._keep, self._ttl = store, keys, precision, keep, ttl
        self.token = secrets.token_hex(8)
        self.danger = ""  # says why what is stored may vanish
        self._owner = ""  # is epoch and token, from the first `ship` on
        self._last = 0
        self._newest: _Version | None = None
        self._older: deque[_Version] = deque()
        self._held = HELD
        self._stays = ""  # says why what is not needed any more cannot be deleted
        self._debris: list[_Version] = []  # what failed publications have left
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="weight-caster")
        # These buffers are used again: one is being sent while the others are filled.
        self._rooms = [np.empty(CHUNK_BYTES, np.uint8) for _ in range(_AHEAD + 1)]

    def ship(self, snapshot: Snapshot) -> int:
        """Stores the chunks, and then manifest and pointer at once, so that a reader finds the whole version or none.
        Returns the version's number. Its digest is then `newest_blake3`."""
        if snapshot.base is not None and snapshot.base.version not in [one.number for one in self._kept()]:
            raise BaseLost
        self._claim()
        number = self._next_version()
        payload = WirePayload(snapshot, self._precision)
        count = -(-payload.size // CHUNK_BYTES)
        version = _Version(number, [self._keys.chunk(number, self.token, index) for index in range(count)])
        try:
            ahead = clock.ahead(self._store, self._keys.pointer)
            taken_at = time.time() - (time.monotonic() - snapshot.taken_at)
            digests = self._send(version, payload, ahead)
            manifest = pb.WeightsManifest(
                format=FORMAT,
                run=self._keys.run,
                version=number,
                trainer_step=snapshot.step,
                published_at=taken_at,
                payload_bytes=payload.size,
                payload_blake3=digest(digests),
                chunk_bytes=CHUNK_BYTES,
                chunk_blake3=digests,
                publisher=self.token,
            )
            if snapshot.base is not None:
                version.base = manifest.base_version = snapshot.base.version
                manifest.base_blake3 = snapshot.base.blake3
            version.manifest, version.blake3 = encode_manifest(manifest), manifest.payload_blake3
            self._show(version)
        except Fenced:
            self._forget_quietly(version.parts)
            raise
        except BaseException as error:
            self._debris.append(version)
            if isinstance(error, StoreFull):
                self._held = 0
            self._tidy()
            raise
        self._make_newest(version)
        self._tidy()
        return number

    @property
    def newest_blake3(self) -> bytes:
        """The digest in the manifest of the newest version; empty if there is none."""
        return b"" if self._newest is None else self._newest.blake3

    def refresh(self) -> bool:
        """Renews the time to live of all that is stored. Returns False if anything that the newest version needs is
        gone (Redis was emptied, or this process stood still for longer than that), so that it should be shipped
        again, or a whole one if it is partial."""
        if not self._owner:
            return True
        self._watch()
        # This comes first, because a successor may use the same numbers, and its keys must not be touched.
        if outranks(owner := self._store.get(self._keys.owner), self._owner):
            raise Fenced
        self._tidy()
        if self._newest is None:
            return True
        for version in list(self._older):
            if not self._store.renew(self._keys_of(version), self._ttl):
                self._older.remove(version)
                self._forget_quietly(self._keys_of(version))  # it is of no use any more
        names = [self._keys.owner, self._keys.counter, self._keys.pointer, *self._keys_of(self._newest)]
        if not self._store.renew(names, self._ttl):
            return False
        if self._newest.base and self._newest.base not in [one.number for one in self._older]:
            return False
        # A failover may have lost the last that was written: who owns the run, or where the pointer moved.
        pointer = self._store.get(self._keys.pointer) or b""
        behind = pointer.isdigit() and int(pointer) < self._newest.number
        if behind or owner != self._owner.encode():
            self._show(self._newest)
        return True

    def close(self) -> None:
        """Ends the threads and the connection."""
        self._pool.shutdown()
        self._store.close()

    def _watch(self) -> None:
        """Tells when this store begins or ceases to be one that throws away what is in use. What runs goes on: readers
        find out about each chunk that is missing."""
        danger = self._store.danger(self._keys.owner)
        if danger and danger != self.danger:
            log.error("weights that are published here may vanish: %s", danger)
        elif self.danger and not danger:
            log.warning("weights that are published here are safe again")
        self.danger = danger

    def _claim(self) -> None:
        """Claims the run, which the last publisher to start owns. The epoch is fixed here, once, and written by
        whatever comes next, so that a claim whose answer was lost is recognised when it is made again. Milliseconds of
        the store's clock also tell publishers apart that claimed a run of which the store knew nothing."""
        if self._owner:
            return
        if danger := self._store.danger(self._keys.owner):
            raise Unsafe(danger)
        milliseconds = int(1000 * (self._store.clock(self._keys.owner) or 0))
        epoch = max(epoch_of(self._store.get(self._keys.owner)) + 1, milliseconds)
        pointer = self._store.get(self._keys.pointer)
        for number, names in self._store.left_behind(self._keys).items():
            shown = str(number).encode() == pointer  # readers may be on their way to it
            (self._older if shown else self._debris).append(_Version(number, names))
            self._last = max(self._last, number)  # so that none of them has a key of ours
        self._owner = f"{epoch} {self.token}"

    def _next_version(self) -> int:
        version = self._store.next_version(self._keys, self._owner, self._last, self._ttl)
        if version == -1:
            raise Fenced
        self._last = version
        return version

    def _show(self, version: _Version) -> None:
        """Stores the manifest and moves the pointer."""
        if self._store.move_pointer(self._keys, self._owner, version.number, version.manifest, self._ttl) == -1:
            raise Fenced

    def _make_newest(self, version: _Version) -> None:
        if self._newest is not None:
            self._newest.until = time.monotonic() + HOLD_SECONDS
            self._older.append(self._newest)
        self._newest = version

    def _send(self, version: _Version, payload: WirePayload, ahead: float | None) -> bytes:
        """Sends the chunks and returns their digests, one after another. Threads cast and hash the next chunks
        meanwhile. First goes how far our clock is ahead, if that is known."""
        starts = range(0, payload.size, CHUNK_BYTES)
        digests: list[bytes] = []
        made: deque[Future[tuple[memoryview, bytes]]] = deque()
        names = list(version.parts)

        def chunks() -> Iterator[tuple[str, memoryview]]:
            if ahead is not None:
                version.parts.append(self._keys.clock(version.number, self.token))
                yield version.parts[-1], memoryview(clock.encode(ahead))
            for index in range(len(starts)):
                while len(made) < _AHEAD and index + len(made) < len(starts):
                    number = index + len(made)
                    room = self._rooms[number % len(self._rooms)][: payload.size - starts[number]]
                    made.append(self._pool.submit(_make, payload, starts[number], room))
                chunk, its_digest = made.popleft().result()
                digests.append(its_digest)
                yield names[index], chunk

        try:
            self._store.put_all(chunks(), self._ttl)
        finally:
            wait(made)  # after a failure, chunks that are still being made must not run into the next version
        return b"".join(digests)

    def _tidy(self) -> None:
        """Deletes what failed, and what is older than the last `keep` versions except for a few that were the newest a
        short while ago. What cannot be reached now is deleted the next time, or dies by itself."""
        try:
            pointer = self._store.get(self._keys.pointer) if self._debris else b""
            while self._debris:
                version = self._debris[-1]
                if pointer == str(version.number).encode():
                    self._make_newest(version)  # only the answer was lost, and readers may be on their way to it
                else:
                    self._store.delete(*version.parts)
                self._debris.pop()
            while len(spare := self._spare()) >= self._keep:
                if spare[0].until > time.monotonic() and len(spare) < self._keep + self._held:
                    break
                self._store.delete(*self._keys_of(spare[0]))
                self._older.remove(spare[0])
            self._stays = ""
        except StoreRefused as error:
            if str(error) != self._stays:
                log.warning("what is not needed any more stays until its time to live ends: %s", error)
            self._stays = str(error)
        except StoreError:
            log.debug("what is not needed any more stays for now", exc_info=True)

    def _kept(self) -> list[_Version]:
        return [*self._older, *([] if self._newest is None else [self._newest])]

    def _spare(self) -> list[_Version]:
        """The former versions, oldest first, without those on which others rest."""
        bases = {version.base for version in self._kept()}
        return [version for version in self._older if version.number not in bases]

    def _forget_quietly(self, names: list[str]) -> None:
        try:
            self._store.delete(*names)
        except StoreError:
            log.debug("it stays until its time to live ends", exc_info=True)

    def _keys_of(self, version: _Version) -> list[str]:
        return [self._keys.manifest(version.number), *version.parts]


def _make(payload: WirePayload, start: int, room: NDArray[np.uint8]) -> tuple[memoryview, bytes]:
    payload.read(start, room)
    return room.data, digest(room.data)
