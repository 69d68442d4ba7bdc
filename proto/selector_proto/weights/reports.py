"""What sidecars tell the trainer whose run they follow: small values in the store, which expire.

A sidecar writes its report into one of SLOTS keys, again and again while it lives; those that share a slot take turns.
The parameters that its learner needs stand under a key of their own, which all sidecars of one bundle share. Nothing
depends on a report: a sidecar that may not write sends none, and its trainer publishes as if there were none.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence

from google.protobuf import json_format

from selector_proto.v1 import weights_pb2 as pb
from selector_proto.weights.layout import digest

SLOTS = 16
REPORT_SECONDS = 15.0
REPORT_TTL_SECONDS = 90
# In a folder nothing expires: a report that is so much older, or newer, than the store's clock is not believed.
BELIEVED_SECONDS = 300.0
MAX_REPORT_BYTES = 16 << 10
MAX_LEARNER_BYTES = 8 << 20
# What was published may be quoted in a reason, and have any length.
MAX_REASON = 800
_PARAMETERS = 100_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ReportError(ValueError):
    """A report cannot be believed; the message says what is wrong with it."""


def slot_of(sidecar: str) -> int:
    """The slot of the sidecar of that name."""
    return zlib.crc32(sidecar.encode()) % SLOTS


def printable(reason: str) -> str:
    """The reason as one short line that harms no terminal, no log and no reply."""
    cut = reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def kind_of(reason: str) -> str:
    """The reason without its numbers: two reasons of one kind are not told twice."""
    return re.sub(r"\d+", "#", reason)


def encode_learner(shapes: Mapping[str, Sequence[int]]) -> tuple[str, bytes]:
    """The digest and the value of what a learner needs: shapes by name."""
    parameters = [pb.LearnerParameter(name=name, shape=shapes[name]) for name in sorted(shapes)]
    value = _encoded(pb.LearnerParameters(parameters=parameters))
    return digest(value).hex(), value


def decode_learner(name: str, value: bytes) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of the value whose digest is `name`. Raises ReportError."""
    if len(value) > MAX_LEARNER_BYTES or digest(value).hex() != name:
        raise ReportError("the learner's parameters are not those that the report names")
    found = pb.LearnerParameters()
    _parse(value, found)
    if len(found.parameters) > _PARAMETERS or any(len(one.shape) > 16 for one in found.parameters):
        raise ReportError("the learner's parameters are too many")
    return {one.name: tuple(one.shape) for one in found.parameters}


def encode_report(report: pb.SidecarReport) -> bytes:
    """The report as JSON."""
    return _encoded(report)


def decode_report(value: bytes, now: float) -> pb.SidecarReport:
    """The report that the value holds, if it is not too old at `now`, in Unix seconds; its texts are safe to print.
    Raises ReportError."""
    if len(value) > MAX_REPORT_BYTES:
        raise ReportError(f"a report has at most {MAX_REPORT_BYTES} bytes")
    report = pb.SidecarReport()
    _parse(value, report)
    if not math.isfinite(report.reported_at) or abs(now - report.reported_at) > BELIEVED_SECONDS:
        raise ReportError(f"the report is not of the last {BELIEVED_SECONDS:g} seconds")
    if report.learner and not _DIGEST.fullmatch(report.learner):
        raise ReportError("the report names no learner")
    report.sidecar, report.state, report.reason = map(printable, (report.sidecar, report.state, report.reason))
    return report


def _encoded(message: pb.SidecarReport | pb.LearnerParameters) -> bytes:
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None).encode()


def _parse(value: bytes, message: pb.SidecarReport | pb.LearnerParameters) -> None:
    try:
        json_format.Parse(value, message, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"not valid: {error}") from error
