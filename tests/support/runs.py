"""A training run as Redis sees it: what its publisher writes, and what somebody writes by hand."""

import json
import time

import numpy as np
import redis
from selector_client import WeightPublisher
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import weights_pb2
from selector_proto.weights.layout import CHUNK_BYTES, FORMAT, Keys, digest, encode_manifest

from selector_server.weights.fetcher import Fetcher
from support.model import plan, samples
from support.processes import eventually
from support.wire import raw

PIXELS, IDS = samples(60)
POLL = {"weights_poll_seconds": 0.05, "max_weights_bytes": 1 << 20}

BY_HAND = "by-hand"  # the publisher of what `put` writes


class Run:
    """One training run: its trainer's publisher, its sidecar, and the keys between them."""

    def __init__(self, name, url, server, models) -> None:
        self.keys, self.url, self.server, self.models = Keys(name), url, server, models
        self.redis = redis.Redis.from_url(url)
        self.publisher = WeightPublisher(url, name)

    def publish(self, model, step=0) -> int:
        """Publishes and waits until it is served; returns the version."""
        assert self.publisher.publish(step, model)
        assert self.publisher.flush(20)
        version = self.publisher.last_version
        eventually(lambda: self.server.status().serving.version == version, 20, lambda: str(self.server.status()))
        return version

    def take_over(self) -> None:
        """Publishes again after somebody else did: only the last one to begin may."""
        self.publisher.close()
        self.publisher = WeightPublisher(self.url, self.keys.run)

    def select(self, **fields) -> pb.SelectResponse:
        return self.server.select(raw(PIXELS, IDS, seed=3, **fields))

    def picks_of(self, model) -> list[int]:
        return self.models.picks(PIXELS, IDS, plan(12, seed=3), learner=model)

    def put(self, tensors, file=None, manifest=None, **changed) -> int:
        """Writes a version by hand: tensors, or the bytes of `file`; `changed` are fields of its manifest."""
        version = self.redis.incr(self.keys.counter)
        file = b"".join(safetensors.encode(tensors)) if file is None else file
        chunks = [file[start : start + CHUNK_BYTES] for start in range(0, len(file), CHUNK_BYTES)]
        digests = b"".join(digest(chunk) for chunk in chunks)
        fields = {
            "format": FORMAT,
            "run": self.keys.run,
            "version": version,
            "published_at": time.time(),
            "payload_bytes": len(file),
            "payload_blake3": digest(digests),
            "chunk_bytes": CHUNK_BYTES,
            "chunk_blake3": digests,
            "publisher": BY_HAND,
        }
        text = encode_manifest(weights_pb2.WeightsManifest(**fields | changed)) if manifest is None else manifest
        self.redis.set(self.keys.chunk(version, BY_HAND, 0), file)
        self.redis.set(self.keys.manifest(version), text)
        self.redis.set(self.keys.pointer, version)
        return version


def fetch(url, run, version):
    """A whole version, read as a sidecar reads it."""
    fetcher = Fetcher(url, run, 1 << 30)
    try:
        return fetcher.fetch(version, fetcher.manifest(version))
    finally:
        fetcher.close()


def newest(url, run):
    """The newest whole version."""
    fetcher = Fetcher(url, run, 1 << 30)
    try:
        version = fetcher.newest()
        return fetcher.fetch(version, fetcher.manifest(version))
    finally:
        fetcher.close()


def chunk_key(client, keys, version, index) -> str:
    """Key of a chunk of a version that is in Redis."""
    return keys.chunk(version, json.loads(client.get(keys.manifest(version)))["publisher"], index)


def views(model, **changed) -> dict[str, TensorView]:
    """A model's tensors as they travel, some of them exchanged for other arrays, or left out (None)."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()} | changed
    return {
        name: TensorView("I64" if a.dtype == np.int64 else "F32", a.shape, memoryview(a.tobytes()))
        for name, a in arrays.items()
        if a is not None
    }
