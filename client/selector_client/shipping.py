"""Ships versions of a run's weights to Redis; the publisher's side of docs/weight-sync.md."""

import logging
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import redis
from numpy.typing import NDArray
from selector_proto.stores import Store
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import CHUNK_BYTES, FORMAT, Keys, digest, encode_manifest

from selector_client.payload import Precision, WirePayload
from selector_client.snapshot import Snapshot

log = logging.getLogger(__name__)

# Threads that cast and hash, and chunks that they are ahead of what is sent.
_THREADS = 2
_AHEAD = 6


class Fenced(Exception):
    """Another publisher owns the run: this one must not publish any more."""


class Unsafe(Exception):
    """This Redis may throw away keys that are in use."""


class Shipper:
    """One publisher's claim on one run. Methods raise redis.RedisError, Fenced or Unsafe; not thread-safe.

    `keep` versions stay in Redis, and all keys die `ttl` seconds after the last `ship` or `refresh`.
    """

    def __init__(self, store: Store, keys: Keys, precision: Precision, keep: int, ttl: int) -> None:
        self._store, self._keys, self._precision, self._keep, self._ttl = store, keys, precision, keep, ttl
        self.token = secrets.token_hex(8)
        self._claimed = False
        self._last = 0
        self._live: deque[tuple[int, int]] = deque()  # version, its chunks
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="weight-caster")
        # Used again: one is being sent while the others are filled.
        self._rooms = [np.empty(CHUNK_BYTES, np.uint8) for _ in range(_AHEAD + 1)]

    def ship(self, snapshot: Snapshot) -> int:
        """Chunks, then the manifest, then the pointer: a reader finds the whole version or none. Returns the
        version."""
        self._claim()
        version = self._next_version()
        payload = WirePayload(snapshot, self._precision)
        chunks = -(-payload.size // CHUNK_BYTES)
        # Noted before it is written: what a failure leaves half done is swept up with the rest.
        self._live.append((version, chunks))
        try:
            digests = self._send(version, payload)
            manifest = pb.WeightsManifest(
                format=FORMAT,
                run=self._keys.run,
                version=version,
                trainer_step=snapshot.step,
                published_at=snapshot.taken_at,
                payload_bytes=payload.size,
                payload_blake3=digest(digests),
                chunk_bytes=CHUNK_BYTES,
                chunk_blake3=digests,
                publisher=self.token,
            )
            self._store.set(self._keys.manifest(version), encode_manifest(manifest), ex=self._ttl)
            if self._store.move_pointer(self._keys, self.token, version, self._ttl) == -1:
                raise Fenced
        except BaseException:
            self._drop_quietly()
            raise
        self._last = version
        while len(self._live) > self._keep:
            self._store.unlink(*self._keys_of(*self._live.popleft()))
        return version

    def refresh(self) -> bool:
        """Renews the time to live of all live keys; False if any that the newest version needs is gone (Redis was
        emptied, or this process stood still for longer than that): it should be shipped again."""
        if not self._live:
            return True
        self._check_owner()
        for version in list(self._live)[:-1]:
            if not self._store.renew(names := self._keys_of(*version), self._ttl):
                self._store.unlink(*names)  # of no use any more
                self._live.remove(version)
        names = [self._keys.owner, self._keys.counter, self._keys.pointer, *self._keys_of(*self._live[-1])]
        return self._store.renew(names, self._ttl)

    def close(self) -> None:
        self._pool.shutdown()
        self._store.close()

    def _claim(self) -> None:
        """The last publisher to start owns the run."""
        if self._claimed:
            return
        if danger := self._store.danger():
            raise Unsafe(danger)
        self._store.set(self._keys.owner, self.token, ex=self._ttl)
        self._claimed = True

    def _next_version(self) -> int:
        version = self._store.next_version(self._keys, self.token, self._last, self._ttl)
        if version == -1:
            raise Fenced
        return version

    def _check_owner(self) -> None:
        owner = self._store.get(self._keys.owner)
        if owner is not None and owner != self.token.encode():
            raise Fenced

    def _send(self, version: int, payload: WirePayload) -> bytes:
        """Sends the chunks and returns their digests. Threads cast and hash the next ones meanwhile."""
        starts = range(0, payload.size, CHUNK_BYTES)
        digests: list[bytes] = []
        made: deque[Future[tuple[memoryview, bytes]]] = deque()

        def chunks() -> Iterator[tuple[str, memoryview]]:
            for index in range(len(starts)):
                while len(made) < _AHEAD and index + len(made) < len(starts):
                    number = index + len(made)
                    room = self._rooms[number % len(self._rooms)][: payload.size - starts[number]]
                    made.append(self._pool.submit(_make, payload, starts[number], room))
                chunk, its_digest = made.popleft().result()
                digests.append(its_digest)
                yield self._keys.chunk(version, index), chunk

        try:
            self._store.set_all(chunks(), ex=self._ttl)
        finally:
            wait(made)  # after a failure, what is still being made must not run into the next version
        return b"".join(digests)

    def _drop_quietly(self) -> None:
        """Takes back a version that failed; what cannot be reached dies by itself."""
        failed = self._live.pop()
        try:
            if self._store.get(self._keys.pointer) == str(failed[0]).encode():
                self._live.append(failed)  # only the answer was lost: readers may be on their way to it
            else:
                self._store.unlink(*self._keys_of(*failed))
        except (redis.RedisError, OSError):
            log.debug("a failed version stays until its time to live ends", exc_info=True)

    def _keys_of(self, version: int, chunks: int) -> list[str]:
        return [self._keys.manifest(version), *(self._keys.chunk(version, index) for index in range(chunks))]


def _make(payload: WirePayload, start: int, room: NDArray[np.uint8]) -> tuple[memoryview, bytes]:
    payload.read(start, room)
    return room.data, digest(room.data)
