"""Fetches whole, verified versions of a run's weights from Redis."""

import hashlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, cast

import numpy as np
import redis
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import (
    DIGEST_BYTES,
    MAX_MANIFEST_BYTES,
    Keys,
    ManifestError,
    chunk_count,
    decode_manifest,
)

MAX_POINTER_BYTES = 19
# How long a stop may go unnoticed.
TICK_SECONDS = 0.2
_HASHERS = 2


class Incomplete(Exception):
    """A version cannot be read whole (yet): a part is missing, short, or does not match its digest."""


@dataclass(frozen=True)
class Fetched:
    """A verified version: its manifest and its tensors, views into one buffer that this object's user owns."""

    manifest: pb.WeightsManifest
    tensors: dict[str, TensorView]


class RedisSource:
    """Reads one run. Methods raise redis.RedisError when the server cannot be reached."""

    def __init__(self, url: str, run: str, max_bytes: int, timeout: float = 5.0) -> None:
        self.keys = Keys(run)
        self._max_bytes = max_bytes
        self._redis = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
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
            return Fetched(manifest, safetensors.decode(self._payload(manifest)))
        except (ManifestError, safetensors.LayoutError) as error:
            raise Incomplete(f"version {version}: {error}") from error

    def _payload(self, manifest: pb.WeightsManifest) -> memoryview:
        """All chunks in one buffer. They are hashed and put in their places while the next ones travel."""
        # Not a bytearray: filling it with zeros first takes as long as half of the fetch.
        payload = memoryview(np.empty(manifest.payload_bytes, np.uint8))
        placed: deque[Future[None]] = deque()

        def place(index: int, chunk: bytes) -> None:
            start = index * manifest.chunk_bytes
            wanted = min(manifest.chunk_bytes, manifest.payload_bytes - start)
            if len(chunk) != wanted:
                raise Incomplete(f"version {manifest.version}: chunk {index} has {len(chunk)} of {wanted} bytes")
            digest = manifest.chunk_sha256[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            if hashlib.sha256(chunk).digest() != digest:
                raise Incomplete(f"version {manifest.version}: SHA-256 of chunk {index} does not match its manifest")
            payload[start : start + wanted] = chunk

        for index in range(chunk_count(manifest)):
            # A range, so that a key larger than promised cannot fill this process's memory.
            chunk = self._read(self.keys.chunk(manifest.version, index), manifest.chunk_bytes)
            placed.append(self._hashers.submit(place, index, chunk))
            if len(placed) > _HASHERS:
                placed.popleft().result()
        for one in placed:
            one.result()
        return payload.toreadonly()

    def _read(self, key: str, most: int) -> bytes:
        """The first `most` bytes of a key, empty if there is none. Raises Incomplete if it is no string."""
        try:
            return cast(bytes, self._redis.getrange(key, 0, most - 1))
        except redis.ResponseError as error:
            raise Incomplete(f"{key}: {error}") from error

    def close(self) -> None:
        self._hashers.shutdown()
        self._redis.close()


class News:
    """Waits for the announcement of a new version. Announcements get lost, so that nobody may rely on one."""

    def __init__(self, url: str, run: str) -> None:
        self._url, self._channel = url, Keys(run).news
        self._subscription: Any = None

    def wait(self, seconds: float, stop: Event) -> None:
        """Returns at the next announcement, after `seconds`, or soon after `stop` is set."""
        try:
            if self._subscription is None:
                self._subscription = redis.Redis.from_url(self._url, socket_connect_timeout=5.0).pubsub()  # type: ignore[no-untyped-call]
                self._subscription.subscribe(self._channel)
            until = time.monotonic() + seconds
            while not stop.is_set() and (left := until - time.monotonic()) > 0:
                message = self._subscription.get_message(timeout=min(left, TICK_SECONDS))
                if message is not None and message["type"] == "message":
                    return
        except (redis.RedisError, OSError):
            self.close()
            stop.wait(seconds)

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
