"""What is stored of a run's weights: the names of keys, the manifest's JSON, and who owns a run.

A publication puts chunks under keys that no other version of any publisher uses, and then manifest and pointer at once.
A reader goes the other way, so it finds a whole version or none. All keys of a run share one hash tag, hence one slot
of a Redis Cluster. The state machine is drawn in docs/weight-sync.md.

A publisher owns its run from its start until another one starts; what a former owner still tries comes to nothing. An
owner is an epoch and a token, `EPOCH TOKEN`. The later owner has the higher epoch, also when the store forgot it or
knows only a former one again (restarted from an old file, failed over). So a publisher that finds a lower epoch than
its own, or no owner, goes on; only a higher epoch, or another owner of the same epoch, fences it off. Epochs rest on
the store's clock, never on a publisher's.
"""

import math
import re
from dataclasses import dataclass

from blake3 import blake3
from google.protobuf import json_format

from selector_proto.v1 import weights_pb2 as pb

FORMAT = 4
# Chunks of 1 to 2 MB are 3 to 5 times faster than 64 MB ones and stall Redis 7 ms instead of 272.
CHUNK_BYTES = 1 << 20
# There are 32 bytes a chunk, in base64: enough for 64 GiB of weights.
MAX_MANIFEST_BYTES = 4 << 20
DIGEST_BYTES = 32
# Tensors in a payload whose names begin with this are no parameters. They are the canary: samples, and the embeddings
# that the trainer computed of them.
CANARY = "__canary__/"
MAX_CANARY = 16
# Names the activations of the trainer's model, separated by commas, U8 [n]; it travels without a canary, too.
ACTIVATIONS = CANARY + "activations"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def epoch_of(owner: bytes | None) -> int:
    """The epoch of what the owner's key holds, 0 for none."""
    found = re.match(rb"(\d+) ", owner or b"")
    return int(found[1]) if found else 0


def outranks(owner: bytes | None, mine: str) -> bool:
    """Whether what the owner's key holds fences off `mine`. The scripts for Redis begin with the same rule."""
    return owner != mine.encode() and owner is not None and epoch_of(owner) >= epoch_of(mine.encode())


def digest(data: bytes | memoryview) -> bytes:
    """The BLAKE3 digest, 32 bytes. It takes a third of SHA-256's time where processors have instructions for SHA-256,
    and a tenth where they do not."""
    return blake3(data).digest()


class ManifestError(ValueError):
    """A manifest cannot be trusted; the message says what is wrong with it."""


@dataclass(frozen=True)
class Keys:
    """The keys of one training run."""

    run: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.run):
            raise ValueError(f"run is {self.run!r}; must be 1 to 64 letters, digits, '.', '_' or '-'")

    @property
    def counter(self) -> str:
        """Holds the last version number that was given out."""
        return f"selector:{{{self.run}}}:weights:counter"

    @property
    def owner(self) -> str:
        """Holds epoch and token of the publisher that may publish."""
        return f"selector:{{{self.run}}}:weights:owner"

    @property
    def news(self) -> str:
        """The channel on which a new version is announced. That is a hint only, for announcements get lost."""
        return f"selector:{{{self.run}}}:weights:news"

    @property
    def pointer(self) -> str:
        """Holds the number of the newest whole version."""
        return f"selector:{{{self.run}}}:weights:latest"

    def report(self, slot: int) -> str:
        """Holds what one of the run's sidecars says to its trainer, see `reports`."""
        return f"selector:{{{self.run}}}:weights:report:{slot}"

    def learner(self, name: str) -> str:
        """Holds the parameters that a learner needs; `name` is their digest, hexadecimal."""
        return f"selector:{{{self.run}}}:weights:learner:{name}"

    def manifest(self, version: int) -> str:
        """Holds the manifest of a version, as JSON."""
        return f"selector:{{{self.run}}}:weights:{version}:manifest"

    def chunk(self, version: int, publisher: str, index: int) -> str:
        """Holds one chunk. The publisher's token is part of the key, since a publisher that was fenced off may still
        write, and a Redis that went back in time gives a version number a second time."""
        return f"selector:{{{self.run}}}:weights:{version}:chunk:{publisher}:{index}"

    def clock(self, version: int, publisher: str) -> str:
        """Holds by how many seconds the publisher's clock was ahead of the store's when it dated that version."""
        return f"selector:{{{self.run}}}:weights:{version}:clock:{publisher}"

    def version_of(self, key: str) -> int | None:
        """The version that a key of this run belongs to; None for every other key."""
        found = re.fullmatch(rf"selector:\{{{re.escape(self.run)}\}}:weights:(\d+):(manifest|(?:chunk|clock):.*)", key)
        return int(found[1]) if found else None


def chunk_count(manifest: pb.WeightsManifest) -> int:
    """The number of chunks, of which all but the last hold `chunk_bytes`."""
    return -(-manifest.payload_bytes // manifest.chunk_bytes)


def encode_manifest(manifest: pb.WeightsManifest) -> bytes:
    """The manifest as JSON."""
    return json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode()


def decode_manifest(text: bytes, keys: Keys, version: int, max_payload_bytes: int) -> pb.WeightsManifest:
    """The manifest of `version`, with every number checked. Raises ManifestError."""
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest has {len(text)} bytes; at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = json_format.Parse(text, pb.WeightsManifest())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"manifest is not valid: {error}") from error
    if manifest.format != FORMAT:
        raise ManifestError(f"manifest format is {manifest.format}; this reader knows {FORMAT}")
    if (manifest.run, manifest.version) != (keys.run, version):
        raise ManifestError(f"manifest names run {manifest.run!r} version {manifest.version}, not {version}")
    if not _NAME.fullmatch(manifest.publisher):
        raise ManifestError(f"publisher is {manifest.publisher!r}; must be a name like that of a run")
    if manifest.trainer_step >= 1 << 63:
        raise ManifestError(f"trainer_step is {manifest.trainer_step}; must be below 2^63")
    if not 0 <= manifest.published_at < math.inf:
        raise ManifestError(f"published_at is {manifest.published_at}; must be seconds since the Unix epoch")
    if not 0 < manifest.payload_bytes <= max_payload_bytes:
        raise ManifestError(f"payload_bytes is {manifest.payload_bytes}; must be 1 to {max_payload_bytes}")
    if not 1 << 10 <= manifest.chunk_bytes <= 64 << 20:
        raise ManifestError(f"chunk_bytes is {manifest.chunk_bytes}; must be 1 KiB to 64 MiB")
    if len(manifest.payload_blake3) != DIGEST_BYTES:
        raise ManifestError(f"payload_blake3 has {len(manifest.payload_blake3)} bytes; must be {DIGEST_BYTES}")
    if len(manifest.chunk_blake3) != (digests := chunk_count(manifest) * DIGEST_BYTES):
        raise ManifestError(f"chunk_blake3 has {len(manifest.chunk_blake3)} bytes; must be {digests}")
    if digest(manifest.chunk_blake3) != manifest.payload_blake3:
        raise ManifestError("payload_blake3 is not that of chunk_blake3; the manifest was changed")
    _check_base(manifest)
    return manifest


def _check_base(manifest: pb.WeightsManifest) -> None:
    if manifest.base_version >= manifest.version:
        raise ManifestError(f"base_version is {manifest.base_version}; must be below {manifest.version}")
    if len(manifest.base_blake3) != (wanted := DIGEST_BYTES if manifest.base_version else 0):
        raise ManifestError(f"base_blake3 has {len(manifest.base_blake3)} bytes; must be {wanted}")
