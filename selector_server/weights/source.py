"""Fetches whole, verified versions of a run's weights from Redis or a folder."""

import hashlib
from dataclasses import dataclass

from selector_proto import safetensors
from selector_proto.redis_link import LinkOptions
from selector_proto.safetensors import TensorView
from selector_proto.stores import open_store
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import MAX_MANIFEST_BYTES, Keys, ManifestError, chunk_count, decode_manifest


class Incomplete(Exception):
    """A version cannot be read whole (yet): a part is missing, short, or does not match its digest."""


@dataclass(frozen=True)
class Fetched:
    """A verified version: its manifest and its tensors, views into one buffer that this object's user owns."""

    manifest: pb.WeightsManifest
    tensors: dict[str, TensorView]


class RedisSource:
    """Reads one run. Methods raise redis.RedisError when the server or folder cannot be reached."""

    def __init__(self, url: str, run: str, max_bytes: int, link: LinkOptions | None = None) -> None:
        self.keys = Keys(run)
        self._max_bytes = max_bytes
        self._redis = open_store(url, link)

    def newest(self) -> int:
        """Newest published version, 0 before the first. Raises Incomplete if the pointer is not a version."""
        text = self._redis.get(self.keys.pointer)
        if text is None:
            return 0
        if not text.isdigit() or len(text) > 18:
            raise Incomplete(f"pointer {self.keys.pointer} holds {text[:40]!r}, not a version")
        return int(text)

    def manifest(self, version: int) -> bytes:
        """Text of a version's manifest, empty if there is none: it tells two versions of one number apart."""
        size = self._redis.strlen(self.keys.manifest(version))
        if size > MAX_MANIFEST_BYTES:
            raise Incomplete(f"manifest of version {version} has {size} bytes; at most {MAX_MANIFEST_BYTES}")
        return self._redis.get(self.keys.manifest(version)) or b""

    def fetch(self, version: int, text: bytes) -> Fetched:
        """The whole version that the manifest `text` describes, verified against its digest. Raises Incomplete."""
        if not text:
            raise Incomplete(f"manifest of version {version} is missing")
        try:
            manifest = decode_manifest(text, self.keys, version, self._max_bytes)
            return Fetched(manifest, safetensors.decode(self._payload(manifest)))
        except (ManifestError, safetensors.LayoutError) as error:
            raise Incomplete(f"version {version}: {error}") from error

    def _payload(self, manifest: pb.WeightsManifest) -> memoryview:
        payload = bytearray(manifest.payload_bytes)
        digest = hashlib.sha256()
        for index in range(chunk_count(manifest)):
            start = index * manifest.chunk_bytes
            wanted = min(manifest.chunk_bytes, manifest.payload_bytes - start)
            key = self.keys.chunk(manifest.version, index)
            # A range, so that a key larger than promised cannot fill this process's memory.
            chunk = self._redis.getrange(key, 0, wanted)
            if len(chunk) != wanted:
                raise Incomplete(f"version {manifest.version}: chunk {index} has {len(chunk)} of {wanted} bytes")
            digest.update(chunk)
            payload[start : start + wanted] = chunk
        if digest.digest() != manifest.payload_sha256:
            raise Incomplete(f"version {manifest.version}: SHA-256 of the payload does not match its manifest")
        return memoryview(payload).toreadonly()

    def close(self) -> None:
        self._redis.close()
