"""Fetches whole, verified versions of a run's weights from where the trainer publishes them, and hears of new ones."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights import clock
from selector_proto.weights.layout import (
    CANARY,
    DIGEST_BYTES,
    MAX_MANIFEST_BYTES,
    Keys,
    ManifestError,
    chunk_count,
    decode_manifest,
    digest,
)
from selector_proto.weights.link import LinkOptions
from selector_proto.weights.store import StoreError, StoreMistyped, StoreRefused
from selector_proto.weights.transports import open_store

from selector_server.buffers import Pool
from selector_server.weights.dating import Clocks
from selector_server.weights.host_share import HostShare

MAX_POINTER_BYTES = 19
# A stop goes unnoticed for at most so long.
TICK_SECONDS = 0.2
_HASHERS = 2
# So many chunks may wait to be hashed while later ones come: a broken one should end the fetch soon.
_BEHIND = 8


class Incomplete(Exception):
    """A version cannot be read whole (yet): a part is missing, short, or does not match its digest."""


@dataclass(frozen=True)
class Fetched:
    """A verified version: its manifest, and its tensors, which are views into one buffer. The buffer is used again when
    nobody holds any of them."""

    manifest: pb.WeightsManifest
    tensors: dict[str, TensorView]


class Fetcher:
    """Reads one run at a URL, with the certificates and the password's file of `link`. A payload may have at most
    `max_bytes`; with a `share`, the sidecars of a host fetch it once. Methods raise StoreError when the store cannot be
    reached, or answers nonsense."""

    def __init__(
        self, url: str, run: str, max_bytes: int, link: LinkOptions | None = None, share: HostShare | None = None
    ) -> None:
        self.keys = Keys(run)
        self._max_bytes, self._share = max_bytes, share
        self._store = open_store(url, link)
        self._base: Fetched | None = None  # what partial versions rest on
        self._buffers = Pool()
        self._hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="weights-hash")

    def newest(self) -> int:
        """The newest published version, 0 before the first. Raises Incomplete if the pointer is not a version."""
        text = self._read(self.keys.pointer, MAX_POINTER_BYTES)
        if not text:
            return 0
        if not text.isdigit() or len(text) >= MAX_POINTER_BYTES:
            raise Incomplete(f"pointer {self.keys.pointer} holds {text[:40]!r}, not a version")
        return int(text)

    def manifest(self, version: int) -> bytes:
        """The text of a version's manifest, empty if there is none. It tells two versions of one number apart. Raises
        Incomplete if it is too long."""
        text = self._read(self.keys.manifest(version), MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise Incomplete(f"manifest of version {version} is too long; at most {MAX_MANIFEST_BYTES} bytes")
        return text

    def danger(self) -> str:
        """Why the store may throw away what is published; empty if it does not."""
        return self._store.danger(self.keys.pointer)

    def fetch(self, version: int, text: bytes) -> Fetched:
        """The whole version that the manifest `text` describes, every chunk verified. What is not in the payload of a
        partial version comes from the one that it rests on. Raises Incomplete."""
        if not text:
            raise Incomplete(f"manifest of version {version} is missing")
        try:
            manifest = decode_manifest(text, self.keys, version, self._max_bytes)
            base = self._base_of(manifest)
            tensors = safetensors.decode(self._shared(manifest))
        except (ManifestError, safetensors.LayoutError) as error:
            raise Incomplete(f"version {version}: {error}") from error
        self._base = base
        if base is not None:
            tensors = {name: view for name, view in base.tensors.items() if not name.startswith(CANARY)} | tensors
        return Fetched(manifest, tensors)

    def clocks(self, manifest: pb.WeightsManifest) -> Clocks:
        """How far the clocks of the version's publisher and of this host are ahead of the store's."""
        told = self._read(self.keys.clock(manifest.version, manifest.publisher), clock.MAX_TEXT_BYTES)
        return Clocks(clock.decode(told), clock.ahead(self._store, self.keys.pointer))

    def _base_of(self, manifest: pb.WeightsManifest) -> Fetched | None:
        """The version that a partial one rests on, None for a whole one. It is kept until a whole one comes. Raises
        Incomplete, ManifestError and LayoutError."""
        number = manifest.base_version
        if not number:
            return None
        if self._base is not None and self._base.manifest.payload_blake3 == manifest.base_blake3:
            return self._base
        self._base = None  # there is no room for two
        if not (text := self.manifest(number)):
            raise Incomplete(f"version {manifest.version} rests on version {number}, whose manifest is missing")
        base = decode_manifest(text, self.keys, number, self._max_bytes)
        if base.base_version or base.payload_blake3 != manifest.base_blake3:
            raise Incomplete(f"version {manifest.version} rests on another version {number} than there is")
        return Fetched(base, safetensors.decode(self._shared(base)))

    def _shared(self, manifest: pb.WeightsManifest) -> memoryview:
        """The payload, which comes from another sidecar of this host if that has it already."""
        payload = self._buffers.take(manifest.payload_bytes).data
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
        """Reads all chunks; each is hashed while the next ones travel."""
        size = manifest.chunk_bytes
        count = chunk_count(manifest)
        keys = [self.keys.chunk(manifest.version, manifest.publisher, index) for index in range(count)]
        rooms = [payload[index * size : (index + 1) * size] for index in range(count)]
        verified: deque[Future[None]] = deque()
        try:
            for index, length in enumerate(self._store.read_into(keys, rooms)):
                if length != len(rooms[index]):
                    raise _of_wrong_size(manifest, index, length)
                verified.append(self._hashers.submit(_verify, manifest, index, rooms[index]))
                if len(verified) > _BEHIND:
                    verified.popleft().result()
        except StoreMistyped as error:
            raise Incomplete(f"version {manifest.version}: {error}") from error
        for one in verified:
            one.result()

    def _read(self, key: str, most: int) -> bytes:
        """The first `most` bytes of a value, empty if there is none. Raises Incomplete if somebody else has the key."""
        try:
            return self._store.first_bytes(key, most)
        except StoreMistyped as error:
            raise Incomplete(f"{key}: {error}") from error

    def close(self) -> None:
        """Ends the threads that hash, and the store's connections."""
        self._hashers.shutdown()
        self._store.close()


def _verify(manifest: pb.WeightsManifest, index: int, chunk: memoryview) -> None:
    """Raises Incomplete unless the chunk has the digest that its manifest says."""
    wanted = manifest.chunk_blake3[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
    if digest(chunk) != wanted:
        raise Incomplete(f"version {manifest.version}: BLAKE3 of chunk {index} does not match its manifest")


def _of_wrong_size(manifest: pb.WeightsManifest, index: int, length: int) -> Incomplete:
    wanted = min(manifest.chunk_bytes, manifest.payload_bytes - index * manifest.chunk_bytes)
    return Incomplete(f"version {manifest.version}: chunk {index} has {length} of {wanted} bytes")


class News:
    """Waits for the announcement of a new version. Announcements get lost, so nobody may rely on one."""

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
        except StoreRefused:  # it is not allowed to listen: asking again would not help either
            self._heard = stop.wait
        except StoreError:
            self._heard = None
            stop.wait(seconds)

    def close(self) -> None:
        """Hangs up."""
        self._heard = None  # the connection that listens ends with this
        self._store.close()
