"""Weights in Redis: names of keys, the manifest's JSON, and the scripts that own a run.

One publication is: chunks under keys that no other version of any publisher uses, then manifest and pointer at once.
A reader goes the other way, so it finds a whole version or none. All keys of a run share one hash tag, hence one slot
of a Redis Cluster. The state machine is drawn in docs/weight-sync.md.
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
# 32 bytes a chunk, in base64: 64 GiB of weights.
MAX_MANIFEST_BYTES = 4 << 20
DIGEST_BYTES = 32
# Tensors of these names in a payload are no parameters: samples, and the embeddings that the trainer computed of them.
CANARY = "__canary__/"
MAX_CANARY = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

# A publisher owns its run from its start until another one starts; what a former owner still tries comes to nothing.
# An owner is an epoch and a token, `EPOCH TOKEN`: the later one has the higher epoch, also when Redis forgot it, or
# knows only a former one again (restarted from an old file, failed over). So whoever finds a lower one, or none, goes
# on; only a higher one, or another one of the same epoch, fences it off.
# KEYS: owner, counter, pointer, manifest. ARGV: the publisher as owner, seconds to live, a version, a manifest.
_OWN = """
local function epoch(owner) return tonumber(string.match(owner, '^(%d+) ') or '0') end
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] and epoch(found) >= epoch(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local function number(key)
  local text = redis.call('GET', key) or '0'
  if #text > 15 or not string.match(text, '^%d+$') then error(key .. ' holds no number') end
  return tonumber(text)
end
"""
# The next version, above ARGV[3] and all before; -1 if another publisher owns the run.
NEXT_VERSION = (
    _OWN
    + """
local new = math.max(number(KEYS[2]), number(KEYS[3]), tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[2], string.format('%.0f', new), 'EX', ARGV[2])
return new
"""
)
# Puts the manifest and moves the pointer, forward only; returns the version that it points to, -1 as above.
MOVE_POINTER = (
    _OWN
    + """
local now = number(KEYS[3])
if tonumber(ARGV[3]) <= now then return now end
redis.call('SET', KEYS[4], ARGV[4], 'EX', ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[2])
return tonumber(ARGV[3])
"""
)


def epoch_of(owner: bytes | None) -> int:
    """Epoch of what the owner's key holds, 0 for none."""
    found = re.match(rb"(\d+) ", owner or b"")
    return int(found[1]) if found else 0


def outranks(owner: bytes | None, mine: str) -> bool:
    """Whether what the owner's key holds fences off `mine`; the scripts' first lines, for stores without scripts."""
    return owner != mine.encode() and owner is not None and epoch_of(owner) >= epoch_of(mine.encode())


def digest(data: bytes | memoryview) -> bytes:
    """What tells data from any other: BLAKE3, a third of SHA-256's time where processors know SHA-256, and a tenth
    where not."""
    return blake3(data).digest()


class ManifestError(ValueError):
    """A manifest that cannot be trusted; the message says what is wrong with it."""


@dataclass(frozen=True)
class Keys:
    """The keys of one training run."""

    run: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.run):
            raise ValueError(f"run is {self.run!r}; must be 1 to 64 letters, digits, '.', '_' or '-'")

    @property
    def counter(self) -> str:
        """Last version number that was given out."""
        return f"selector:{{{self.run}}}:weights:counter"

    @property
    def owner(self) -> str:
        """Epoch and token of the publisher that may publish."""
        return f"selector:{{{self.run}}}:weights:owner"

    @property
    def news(self) -> str:
        """Channel on which a new version is announced; a hint, for announcements get lost."""
        return f"selector:{{{self.run}}}:weights:news"

    @property
    def pointer(self) -> str:
        """Newest whole version."""
        return f"selector:{{{self.run}}}:weights:latest"

    def manifest(self, version: int) -> str:
        return f"selector:{{{self.run}}}:weights:{version}:manifest"

    def chunk(self, version: int, publisher: str, index: int) -> str:
        """The publisher is part of it: one that was fenced off may still write, and a Redis that went back in time
        gives a number a second time."""
        return f"selector:{{{self.run}}}:weights:{version}:chunk:{publisher}:{index}"

    def version_of(self, key: str) -> int | None:
        """The version that a key of this run belongs to; None for every other key."""
        found = re.fullmatch(rf"selector:\{{{re.escape(self.run)}\}}:weights:(\d+):(manifest|chunk:.*)", key)
        return int(found[1]) if found else None


def chunk_count(manifest: pb.WeightsManifest) -> int:
    """Number of chunks: all but the last hold `chunk_bytes`."""
    return -(-manifest.payload_bytes // manifest.chunk_bytes)


def encode_manifest(manifest: pb.WeightsManifest) -> bytes:
    """The manifest as JSON."""
    return json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode()


def decode_manifest(text: bytes, keys: Keys, version: int, max_payload_bytes: int) -> pb.WeightsManifest:
    """The manifest of `version`, every number checked. Raises ManifestError."""
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
    return manifest
