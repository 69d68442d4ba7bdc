"""`selector info` tells what a running sidecar is, and which weights it serves."""

import argparse
import sys
from typing import Any

from google.protobuf import json_format
from selector_client import Selector, SelectorClientError
from selector_proto.v1 import selector_pb2 as pb

from selector_tools.access import access_flags, add_flags

Rows = list[tuple[str, str]]


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("info", help="ask a running sidecar what it is and which weights it serves")
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="how long to wait (default 5)")
    parser.add_argument(
        "--json", action="store_true", help="print two JSON objects, with the settings: the two answers"
    )
    add_flags(parser)
    parser.set_defaults(handler=run, extra="server")


def run(arguments: argparse.Namespace) -> int:
    try:
        with Selector(arguments.address, timeout=arguments.timeout, **access_flags(arguments)) as selector:
            info, weights = selector.connect(arguments.timeout), selector.weights_status()
    except (SelectorClientError, ValueError) as error:
        print(f"selector info: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        for message in (info, weights):
            print(json_format.MessageToJson(message, preserving_proto_field_name=True))
    else:
        rows = [*_server(info), *_model("learner", info.learner), *_model("reference", info.reference)]
        print(
            "\n".join(f"{name:<15}{_line(text)}".rstrip() for name, text in [*rows, *_limits(info), *_weights(weights)])
        )
    return 0


def _server(info: pb.GetServerInfoResponse) -> Rows:
    libraries = ", ".join(
        f"{name} {version}" for name, version in sorted(info.versions.items()) if name != "jest-selector"
    )
    return [
        ("server", f"jest-selector {info.server_version}, on {info.device}"),
        ("libraries", libraries),
        ("run", info.run or "none: no weights are followed"),
        ("policies", ", ".join(info.policies)),
        ("criteria", _names(pb.Criterion, info.criteria)),
        ("losses", _names(pb.Loss, info.losses)),
        ("shared memory", info.shared_memory_dir or "none"),
        ("cache", info.config.get("cache") or "none"),
    ]


def _model(role: str, model: pb.ModelInfo) -> Rows:
    if not model.name:
        return [(role, "none: raw samples cannot be scored by it")]
    image, text = model.image, model.text
    seconds, cached = model.encode_seconds_per_sample, model.cached_samples
    tokenizer = "texts or tokens" if text.has_tokenizer else "tokens only"
    rows = [
        (role, f"{model.name}, width {model.width}, {model.precision}, {_name(pb.Loss, model.loss)} loss"),
        ("", f"images {image.height} x {image.width} x {image.channels}"),
        ("", f"{text.max_tokens} tokens of {text.vocabulary:,}, {tokenizer}"),
        ("", f"runs on {', '.join(model.providers)}; fingerprint {model.fingerprint[:16]}"),
    ]
    if seconds:
        rows.append(("", f"{1000 * seconds:.3g} ms for a sample; {1000 * seconds:.3g} s for 1,000 candidates"))
    if cached:
        rows.append(
            ("", f"{cached:,} samples were cached at the start (counted up to 10,000), such as {model.cached_id!r}")
        )
    return rows


def _limits(info: pb.GetServerInfoResponse) -> Rows:
    limits = info.limits
    return [
        ("limits", f"B <= {limits.max_super_batch:,}, N <= {limits.max_chunks:,}, D <= {limits.max_width:,}"),
        ("", f"a request: {_size(limits.max_payload_bytes)}; at once: {limits.max_pending_requests} requests"),
        ("", f"an image: {_size(limits.max_image_bytes)}, {limits.max_image_pixels:,} pixels"),
        ("", f"a text: {_size(limits.max_text_bytes)}; ranks of a group: {limits.max_world_size}"),
    ]


def _weights(status: pb.GetWeightsStatusResponse) -> Rows:
    serving = status.serving
    served = f"version {serving.version} of step {serving.trainer_step}, {serving.age_seconds:.1f} s old"
    newest = f"newest {status.newest_version}, {status.swaps} swapped in, {status.rejections} refused"
    rows = [
        ("weights", served if status.HasField("serving") else "none"),
        ("", f"{_name(pb.SyncState, status.state)}, {newest}, from {status.source or 'the bundle'}"),
    ]
    return [*rows, ("", f"because {status.last_error}")] if status.last_error else rows


def _names(enum: Any, values: Any) -> str:
    return ", ".join(_name(enum, value) for value in values)


def _name(enum: Any, value: Any) -> str:
    """Returns the short lower-case name of an enum's value as users write it, or its number if this version has no
    name for it."""
    known: dict[int, str] = {number: name for name, number in enum.items()}
    prefix = known[0].removesuffix("UNSPECIFIED")
    return known.get(value, str(value)).removeprefix(prefix).lower().replace("_", "-")


def _size(count: int) -> str:
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if count >= _UNITS[unit]), "bytes")
    return f"{count / _UNITS[unit]:,.4g} {unit}"


def _line(text: str) -> str:
    return " ".join(text.split())


_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "bytes": 1}
