"""Ships versions of a run's weights to Redis; the publisher's side of docs/weight-sync.md."""

import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
from selector_proto.chunks import cut
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import CHUNK_BYTES, FORMAT, MOVE_POINTER, NEXT_VERSION, Keys, encode_manifest

from selector_client.snapshot import Precision, Snapshot, payload

log = logging.getLogger(__name__)

# Threads that hash, and chunks that may still be hashed when they have been sent.
_HASHERS = 2
_BEHIND = 4
# Keys whose time to live is renewed in one round trip.
_PIPELINE = 1000


class Fenced(Exception):
    """Another publisher owns the run: this one must not publish any more."""


class Unsafe(Exception):
    """This Redis may throw away keys that are in use."""


class Shipper:
    """One publisher's claim on one run. Methods raise redis.RedisError, Fenced or Unsafe; not thread-safe.

    `keep` versions stay in Redis, and all keys die `ttl` seconds after the last `ship` or `refresh`.
    """

    def __init__(self, client: Any, keys: Keys, precision: Precision, keep: int, ttl: int) -> None:
        self._redis, self._keys, self._precision, self._keep, self._ttl = client, keys, precision, keep, ttl
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
            self._redis.set(self._keys.manifest(version), encode_manifest(manifest), ex=self._ttl)
            arguments = (self.token, version, self._ttl, self._keys.news)
            if self._redis.eval(MOVE_POINTER, 2, self._keys.owner, self._keys.pointer, *arguments) == -1:
                raise Fenced
        except BaseException:
            self._drop_quietly()
            raise
        self._last = version
        while len(self._live) > self._keep:
            self._redis.unlink(*self._keys_of(*self._live.popleft()))
        return version

    def refresh(self) -> bool:
        """Renews the time to live of all live keys; False if any is gone (Redis was emptied, or this process stood
        still for longer than that): the newest version should be shipped again."""
        if not self._live:
            return True
        self._check_owner()
        names = [self._keys.owner, self._keys.counter, self._keys.pointer]
        names += [key for version in self._live for key in self._keys_of(*version)]
        alive = True
        for start in range(0, len(names), _PIPELINE):
            pipeline = self._redis.pipeline(transaction=False)
            for name in names[start : start + _PIPELINE]:
                pipeline.expire(name, self._ttl)
            alive &= all(pipeline.execute())
        return alive

    def close(self) -> None:
        self._pool.shutdown()
        self._redis.close()

    def _claim(self) -> None:
        """The last publisher to start owns the run."""
        if self._claimed:
            return
        if danger := eviction_danger(self._redis):
            raise Unsafe(danger)
        self._redis.set(self._keys.owner, self.token, ex=self._ttl)
        self._claimed = True

    def _next_version(self) -> int:
        version = self._redis.eval(
            NEXT_VERSION, 2, self._keys.owner, self._keys.counter, self.token, self._last, self._ttl
        )
        if version == -1:
            raise Fenced
        return int(version)

    def _check_owner(self) -> None:
        owner = self._redis.get(self._keys.owner)
        if owner is not None and owner != self.token.encode():
            raise Fenced

    def _send(self, version: int, parts: Iterator[memoryview]) -> Iterator[bytes]:
        """Sends the chunks and yields their digests; they are hashed on threads while they travel."""
        hashed: deque[Future[bytes]] = deque()
        for index, chunk in enumerate(cut(parts, CHUNK_BYTES)):
            hashed.append(self._pool.submit(lambda piece: hashlib.sha256(piece).digest(), chunk))
            self._redis.set(self._keys.chunk(version, index), chunk, ex=self._ttl)
            if len(hashed) > _BEHIND:
                yield hashed.popleft().result()
        yield from (digest.result() for digest in hashed)

    def _drop_quietly(self) -> None:
        """Takes back a version that failed; what cannot be reached dies by itself."""
        try:
            self._redis.unlink(*self._keys_of(*self._live.pop()))
        except (redis.RedisError, OSError):
            log.debug("a failed version stays until its time to live ends", exc_info=True)

    def _keys_of(self, version: int, chunks: int) -> list[str]:
        return [self._keys.manifest(version), *(self._keys.chunk(version, index) for index in range(chunks))]


def eviction_danger(client: Any) -> str:
    """Why this Redis may throw away chunks that are in use, or an empty text."""
    try:
        memory = client.info("memory")
    except redis.ResponseError as error:  # not allowed to ask
        log.warning("weights: cannot tell whether Redis evicts keys: %s", error)
        return ""
    policy, most = memory.get("maxmemory_policy", "noeviction"), memory.get("maxmemory", 0)
    if most and policy != "noeviction":
        return f"maxmemory-policy is {policy}; must be noeviction, or chunks of live weights vanish without an error"
    return ""
