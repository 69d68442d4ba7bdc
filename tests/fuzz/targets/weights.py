"""What a trainer publishes, as bytes: the manifest and the safetensors file."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from random import Random

from selector_proto import safetensors
from selector_proto.safetensors import ITEM_BYTES, TensorView
from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights.layout import (
    FORMAT,
    Keys,
    ManifestError,
    chunk_count,
    decode_manifest,
    digest,
    encode_manifest,
)
from selector_proto.weights.names import misfit
from selector_proto.weights.reports import ReportError, decode_learner, decode_report, encode_learner, encode_report

from fuzz.mutate_json import tree
from fuzz.mutation import either, raw, repaired
from fuzz.target import Decode, Target

_RUN, _VERSION, _MOST = "run", 7, 1 << 24
_TENSORS = {
    "a.weight": TensorView("F32", (2, 3), memoryview(bytes(24))),
    "b": TensorView("BF16", (), memoryview(b"\x80\x3f")),
    "empty": TensorView("I64", (0, 5), memoryview(b"")),
    "__canary__/pixels": TensorView("U8", (1, 2, 2, 3), memoryview(bytes(12))),
}


def payload() -> bytes:
    return b"".join(safetensors.encode(_TENSORS))


def manifest(data: bytes, chunk_bytes: int = 1 << 10) -> pb.WeightsManifest:
    """As a publisher writes it."""
    digests = b"".join(digest(data[at : at + chunk_bytes]) for at in range(0, len(data), chunk_bytes))
    return pb.WeightsManifest(
        format=FORMAT,
        run=_RUN,
        version=_VERSION,
        trainer_step=100,
        published_at=1.7e9,
        payload_bytes=len(data),
        payload_blake3=digest(digests),
        chunk_bytes=chunk_bytes,
        chunk_blake3=digests,
        publisher="p",
    )


@contextmanager
def manifests(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        found = decode_manifest(data, Keys(_RUN), _VERSION, _MOST)
        assert 0 < chunk_count(found) * found.chunk_bytes < _MOST + found.chunk_bytes
        assert len(found.chunk_blake3) == 32 * chunk_count(found)
        return ""

    yield decode


def manifest_seeds() -> list[bytes]:
    return [encode_manifest(manifest(bytes(size))) for size in (1, 1024, 5000)]


def with_digests(data: bytes) -> bytes:
    """As many chunk digests as its numbers need, and their own."""
    try:
        fields = json.loads(data)
        count = -(-int(fields["payload_bytes"]) // int(fields["chunk_bytes"]))
        digests = base64.b64decode(fields["chunk_blake3"])
        digests = (digests + bytes(32 * max(0, min(count, 1000))))[: 32 * count]
        fields |= {
            "chunk_blake3": base64.b64encode(digests).decode(),
            "payload_blake3": base64.b64encode(digest(digests)).decode(),
        }
        return json.dumps(fields).encode()
    except (ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError, RecursionError):
        return data


@contextmanager
def reports(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        found = decode_report(data, time.time())
        assert found.reason.isprintable()
        assert found.sidecar.isprintable()
        return ""

    yield decode


def report_seeds() -> list[bytes]:
    plain = pb.SidecarReport(sidecar="s", reported_at=time.time(), serving_version=3, learner="0" * 64)
    refusing = pb.SidecarReport(sidecar="s", reported_at=time.time(), state="rejected", version=4, reason="no\x1b[2J")
    return [encode_report(plain), encode_report(refusing)]


@contextmanager
def learners(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        found = decode_learner(digest(data).hex(), data)
        assert len(misfit(found, {"a": (1, 2), "module.b": None, "c": ()})) < 2000
        return ""

    yield decode


def learner_seeds() -> list[bytes]:
    return [encode_learner(shapes)[1] for shapes in ({"a": (1, 2), "b": ()}, {f"x.{i}": (i,) for i in range(40)})]


@contextmanager
def layouts(_: Path) -> Iterator[Decode]:
    def decode(data: bytes) -> str:
        views = safetensors.decode(memoryview(data))
        start = 8 + int.from_bytes(data[:8], "little")
        assert sum(len(view.data) for view in views.values()) == len(data) - start, "bytes that no tensor has"
        for view in views.values():
            assert len(view.data) == prod(view.shape) * ITEM_BYTES[view.dtype]
            assert all(type(size) is int for size in view.shape)
        return ""

    yield decode


def layout_seeds() -> list[bytes]:
    many = {f"t{i}": TensorView("U8", (i,), memoryview(bytes(i))) for i in range(40)}
    return [payload(), b"".join(safetensors.encode(many)), b"".join(safetensors.encode({}))]


def _header(random: Random, data: bytes, other: bytes) -> bytes:
    """Changes the JSON and tells its new length."""
    texts = []
    for one in (data, other):
        length = int.from_bytes(one[:8], "little")
        texts.append((one[8 : 8 + length], one[8 + length :]))
    text = _JSON(random, texts[0][0], texts[1][0])
    return len(text).to_bytes(8, "little") + text + texts[0][1]


_JSON = tree("F32", "BF16", "U8", "F8", [0, 24], [24, 0], [0, 0], [1 << 47] * 16, [0, 1 << 62], {"__metadata__": {}})
_FIELDS = tree(_RUN, FORMAT, _VERSION, str(1 << 63), "Infinity", "NaN", 1023, 64 << 20, 1e3, "AAAA", "====")
_REPORT = either(tree("rejected", "NaN", 1 << 64, -1, "\x1b[2J" * 100, [0] * 20, "0" * 64), raw())
TARGETS = (
    Target(
        "manifest",
        "the weights' manifest",
        manifests,
        manifest_seeds,
        repaired(_FIELDS, with_digests),
        (ManifestError,),
        share=1.5,
    ),
    Target("report", "a sidecar's report", reports, report_seeds, _REPORT, (ReportError,), share=0.5),
    Target("learner", "what a learner needs", learners, learner_seeds, _REPORT, (ReportError,), share=0.5),
    Target(
        "safetensors",
        "the weights' payload",
        layouts,
        layout_seeds,
        either(_header, _header, raw()),
        (safetensors.LayoutError,),
        share=2.0,
    ),
)
