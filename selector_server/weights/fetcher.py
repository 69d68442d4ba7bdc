"""Fetches whole, verified versions of a run's weights from Redis or a folder."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import redis
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights.layout import (
    DIGEST_BYTES,
    MAX_MANIFEST_BYTES,
    Keys,
    ManifestError,
    chunk_count,
    decode_manifest,
    digest,
)
from selector_proto.weights.redis_link import LinkOptions
from selector_proto.weights.redis_store import open_store

from selector_server.buffers import Pool
from selector_server.weights.host_share import HostShare

MAX_POINTER_BYTES = 19
# How long a stop may go unnoticed.
TICK_SECONDS = 0.2
_HASHERS = 2
# Chunks that may still be hashed when later ones have come: a broken one ends the fetch soon.
_BEHIND = 8


class Incomplete(Exception):
    """A version cannot be read whole (yet): a part is missing, short, or does not match its digest."""


@dataclass(frozen=True)
class Fetched:
    """A verified version: its manifest and its tensors, views into one buffer that this object's user owns."""

    manifest: pb.WeightsManifest
    tensors: dict[str, TensorView]


class RedisSource:
    """Reads one run. Methods raise redis.RedisError when the server or folder cannot be reached."""

    def __init__(
        self, url: str, run: str, max_bytes: int, link: LinkOptions | None = None, share: HostShare | None = None
    ) -> None:
        self.keys = Keys(run)
        self._max_bytes, self._share = max_bytes, share
        self._store = open_store(url, link)
        self._memory = Pool()
        self._hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="weights-hash")

    def newest(self) -> int:
        """Newest published version, 0 before the first. Raises Incomplete if the pointer is not a version."""
        text = self._read(self.keys.pointer, MAX_POINTER_BYTES)
        if not text:
            return 0
        if not text.isdigit() or len(text) >= MAX_POINTER_BYTES:
            raise Incomplete(f"pointer {self.keys.pointer} holds {text[:40]!r}, not a version")
        return int(text)

    def manifest(self, version: int) -> bytes:
        """Text of a version's manifest, empty if there is none: it tells two versions of one number apart."""
        text = self._read(self.keys.manifest(version), MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise Incomplete(f"manifest of version {version} is too long; at most {MAX_MANIFEST_BYTES} bytes")
        return text

    def fetch(self, version: int, text: bytes) -> Fetched:
        """The whole version that the manifest `text` describes, every chunk verified. Raises Incomplete."""
        if not text:
            raise Incomplete(f"manifest of version {version} is missing")
        try:
            manifest = decode_manifest(text, self.keys, version, self._max_bytes)
            return Fetched(manifest, safetensors.decode(self._shared(manifest)))
        except (ManifestError, safetensors.LayoutError) as error:
            raise Incomplete(f"version {version}: {error}") from error

    def _shared(self, manifest: pb.WeightsManifest) -> memoryview:
        """The payload, from another sidecar of this host if it has it already."""
        payload = self._memory.take(manifest.payload_bytes).data
        if self._share is None:
            self._receive(manifest, payload)
            return payload
        name = manifest.payload_blake3
        foreign = self._share.fill(payload, name, lambda: self._receive(manifest, payload))
        try:
            for index in range(chunk_count(manifest) if foreign else 0):
                start = index * manifest.chunk_bytes
                _verify(manifest, index, payload[start : start + manifest.chunk_bytes])
        except Incomplete:
            self._share.drop(name)
            raise
        return payload

    def _receive(self, manifest: pb.WeightsManifest, payload: memoryview) -> None:
        """All chunks, each hashed while the next ones travel."""
        size = manifest.chunk_bytes
        count = chunk_count(manifest)
        keys = [self.keys.chunk(manifest.version, manifest.publisher, index) for index in range(count)]
        rooms = [payload[index * size : (index + 1) * size] for index in range(count)]
        verified: deque[Future[None]] = deque()
        try:
            for index, length in enumerate(self._store.fill(keys, rooms)):
                if length != len(rooms[index]):
                    raise _of_wrong_size(manifest, index, length)
                verified.append(self._hashers.submit(_verify, manifest, index, rooms[index]))
                if len(verified) > _BEHIND:
                    verified.popleft().result()
        except redis.ResponseError as error:
            raise Incomplete(f"version {manifest.version}: {error}") from error
        for one in verified:
            one.result()

    def _read(self, key: str, most: int) -> bytes:
        """The first `most` bytes of a key, empty if there is none. Raises Incomplete if it is no string."""
        try:
            return self._store.getrange(key, 0, most - 1)
        except redis.ResponseError as error:
            raise Incomplete(f"{key}: {error}") from error

    def close(self) -> None:
        self._hashers.shutdown()
        self._store.close()


def _verify(manifest: pb.WeightsManifest, index: int, chunk: memoryview) -> None:
    wanted = manifest.chunk_blake3[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
    if digest(chunk) != wanted:
        raise Incomplete(f"version {manifest.version}: BLAKE3 of chunk {index} does not match its manifest")


def _of_wrong_size(manifest: pb.WeightsManifest, index: int, length: int) -> Incomplete:
    wanted = min(manifest.chunk_bytes, manifest.payload_bytes - index * manifest.chunk_bytes)
    return Incomplete(f"version {manifest.version}: chunk {index} has {length} of {wanted} bytes")


class News:
    """Waits for the announcement of a new version. Announcements get lost, so that nobody may rely on one."""

    def __init__(self, url: str, run: str, link: LinkOptions | None = None) -> None:
        self._store, self._channel = open_store(url, link), Keys(run).news
        self._heard: Callable[[float], bool] | None = None

    def wait(self, seconds: float, stop: Event) -> None:
        """Returns at the next announcement, after `seconds`, or soon after `stop` is set."""
        try:
            # Where nothing can be heard, asking again at every look would not help.
            self._heard = self._heard or self._store.listen(self._channel) or stop.wait
            until = time.monotonic() + seconds
            while not stop.is_set() and (left := until - time.monotonic()) > 0:
                if self._heard(min(left, TICK_SECONDS)):
                    return
        except redis.ResponseError:  # nor where it is not allowed
            self._heard = stop.wait
        except (redis.RedisError, OSError):
            self._heard = None
            stop.wait(seconds)

    def close(self) -> None:
        self._heard = None  # its connection ends with it
        self._store.close()
