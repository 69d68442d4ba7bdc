"""Ships versions of a run's weights to Redis; the publisher's side of docs/weight-sync.md."""

import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import redis
from selector_proto.chunks import cut
from selector_proto.stores import Store
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import CHUNK_BYTES, FORMAT, Keys, encode_manifest

from selector_client.snapshot import Precision, Snapshot, payload

log = logging.getLogger(__name__)

# Threads that hash, and chunks that may still be hashed when they have been sent.
_HASHERS = 2
_BEHIND = 4


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
        self._pool = ThreadPoolExecutor(_HASHERS, thread_name_prefix="weight-hasher")

    def ship(self, snapshot: Snapshot) -> int:
        """Chunks, then the manifest, then the pointer: a reader finds the whole version or none. Returns the
        version."""
        self._claim()
        version = self._next_version()
        size, parts = payload(snapshot, self._precision)
        chunks = -(-size // CHUNK_BYTES)
        # Noted before it is written: what a failure leaves half done is swept up with the rest.
        self._live.append((version, chunks))
        try:
            digests = b"".join(self._send(version, parts))
            manifest = pb.WeightsManifest(
                format=FORMAT,
                run=self._keys.run,
                version=version,
                trainer_step=snapshot.step,
                published_at=snapshot.taken_at,
                payload_bytes=size,
                payload_sha256=hashlib.sha256(digests).digest(),
                chunk_bytes=CHUNK_BYTES,
                chunk_sha256=digests,
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
        """Renews the time to live of all live keys; False if any is gone (Redis was emptied, or this process stood
        still for longer than that): the newest version should be shipped again."""
        if not self._live:
            return True
        self._check_owner()
        names = [self._keys.owner, self._keys.counter, self._keys.pointer]
        names += [key for version in self._live for key in self._keys_of(*version)]
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

    def _send(self, version: int, parts: Iterator[memoryview]) -> Iterator[bytes]:
        """Sends the chunks and yields their digests; they are hashed on threads while they travel."""
        hashed: deque[Future[bytes]] = deque()
        for index, chunk in enumerate(cut(parts, CHUNK_BYTES)):
            hashed.append(self._pool.submit(lambda piece: hashlib.sha256(piece).digest(), chunk))
            self._store.set(self._keys.chunk(version, index), chunk, ex=self._ttl)
            if len(hashed) > _BEHIND:
                yield hashed.popleft().result()
        yield from (digest.result() for digest in hashed)

    def _drop_quietly(self) -> None:
        """Takes back a version that failed; what cannot be reached dies by itself."""
        try:
            self._store.unlink(*self._keys_of(*self._live.pop()))
        except (redis.RedisError, OSError):
            log.debug("a failed version stays until its time to live ends", exc_info=True)

    def _keys_of(self, version: int, chunks: int) -> list[str]:
        return [self._keys.manifest(version), *(self._keys.chunk(version, index) for index in range(chunks))]
