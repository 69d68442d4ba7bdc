"""gRPC channels to a sidecar, and what their errors mean."""

import math
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from selector_client.errors import RemoteError, SelectorClientError, Unreachable

OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # While a call waits for a connection, it is tried again often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Otherwise the channel that a forked child opens shares connections with the one its parent had.
    ("grpc.use_local_subchannel_pool", 1),
]
PROBE_SECONDS = 2.0
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# grpc.health.v1: HealthCheckRequest(service=…) and HealthCheckResponse(status=SERVING), too small for a dependency.
_SERVICE = b"selector.v1.SelectorService"
_HEALTH_REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
_SERVING = b"\x08\x01"
# google.rpc.Status(details=3: Any) and google.rpc.RetryInfo(retry_delay=1: Duration), likewise.
_STATUS, _DETAILS, _RETRY_INFO, _DELAY = "grpc-status-details-bin", 3, "google.rpc.RetryInfo", 1


def error_of(error: grpc.RpcError, address: str) -> SelectorClientError:
    """A failed call as one of ours."""
    code = error.code()
    kind = Unreachable if code in _NO_ANSWER else RemoteError
    return kind(code.name.lower(), f"{address}: {code.name}: {error.details() or ''}", retry_seconds(error))


def retry_seconds(error: grpc.RpcError) -> float | None:
    """When the same request may succeed, by the error's details; None without any. A request that exhausts resources
    and is not told so never will: infinite."""
    trailers: Any = error.trailing_metadata() or ()
    status = dict(trailers).get(_STATUS)
    if not isinstance(status, bytes):
        return None
    try:
        for detail in map(any_pb2.Any.FromString, _fields(status, _DETAILS)):
            if detail.TypeName() == _RETRY_INFO:
                delays = [Duration.FromString(delay) for delay in _fields(detail.value, _DELAY)]
                return max(0.0, sum(delay.seconds + delay.nanos / 1e9 for delay in delays))
    except (DecodeError, TypeError):  # no message, or no submessage where one should be
        return None
    return math.inf if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else None


def _fields(message: bytes, number: int) -> list[bytes]:
    """What a message of any type holds in this field."""
    fields: Any = UnknownFieldSet(Empty.FromString(message))
    return [field.data for field in fields if field.field_number == number]


def healthy(address: str) -> bool:
    """Whether a sidecar at that address says that it serves requests; asks on a connection of its own."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        try:
            return bool(check(_HEALTH_REQUEST, timeout=PROBE_SECONDS, wait_for_ready=True) == _SERVING)
        except grpc.RpcError:
            return False
