"""Opens gRPC channels to a sidecar, and turns their errors into the client's own."""

import math
import re
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_client.errors import Denied, RemoteError, SelectorClientError, Unreachable, Untrusted
from selector_client.selecting.credentials import Access

OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # While a call waits for a connection, gRPC tries again often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Without this the channel that a forked child opens would share connections with the channel of its parent.
    ("grpc.use_local_subchannel_pool", 1),
    # The sidecar is on this host or in this cluster, so calls never go through a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
]
PROBE_SECONDS = 2.0
# grpc.aio says this when it goes on sending after the sidecar has ended the call, and the sidecar's status is lost.
_STATUS_LOST = "Internal error from Core"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# These bytes are HealthCheckRequest(service=…) and HealthCheckResponse(status=SERVING) of grpc.health.v1, which are too
# small to deserve a dependency.
_SERVICE = b"selector.v1.SelectorService"
_HEALTH_REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
_SERVING = b"\x08\x01"
# Likewise google.rpc.Status has its details (Any) in field 3, and google.rpc.RetryInfo its retry_delay (Duration) in 1.
_STATUS, _DETAILS, _RETRY_INFO, _DELAY = "grpc-status-details-bin", 3, "google.rpc.RetryInfo", 1

_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# gRPC uses these words when one side does not trust the other, or does not speak TLS.
_UNTRUSTED = re.compile(r"(tls|ssl) handshake failed|verification check failed", re.IGNORECASE)
_CAUSE = re.compile(
    r"CERTIFICATE_VERIFY_FAILED: ([a-z -]+)|(Hostname Verification Check failed)|(WRONG_VERSION_NUMBER)"
)
# A server that wants a certificate of its client closes the connection without a word.
_CLOSED = "failed to connect to all addresses"


def open_channel(address: str, access: Access) -> grpc.Channel:
    """Opens a blocking channel; it connects with the first call. Raises Untrusted."""
    credentials = access.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=options_of(access))


def open_aio_channel(address: str, access: Access) -> grpc.aio.Channel:
    """Opens a channel for asyncio; it connects with the first call. Raises Untrusted."""
    credentials = access.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=options_of(access))


def options_of(access: Access) -> list[tuple[str, Any]]:
    """Returns OPTIONS, and with them the name that the sidecar's certificate must have, if that is set."""
    return OPTIONS + ([("grpc.ssl_target_name_override", access.server_name)] if access.server_name else [])


def service(channel: Any, access: Access) -> Any:
    """Returns the calls of SelectorService, which send the present token beside their own metadata. Raises
    Untrusted."""
    stub, token = rpc.SelectorServiceStub(channel), access.metadata() or ()  # type: ignore[no-untyped-call]

    def known(call: Any) -> Any:
        return lambda *request, metadata=None, **options: call(
            *request, metadata=(*token, *(metadata or ())), **options
        )

    return SimpleNamespace(**{name: known(call) for name, call in vars(stub).items()})


def error_of(error: grpc.RpcError, address: str, access: Access) -> SelectorClientError:
    """Returns the client's error for a failed call."""
    code, details = error.code(), error.details() or ""
    message = f"{address}: {code.name}: {details}"
    if code in _DENIED:
        return Denied(code.name.lower(), f"{message} (token_file is {access.token_file or 'not set'})")
    if code not in _NO_ANSWER:
        return RemoteError(code.name.lower(), message, retry_seconds(error))
    if _UNTRUSTED.search(details):
        return Untrusted("untrusted", f"{address}: {_cause(details)}")
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_CLOSED) and "Socket closed" in details:
        hint = "a certificate of ours, which it trusts (certificate_file)" if access.secure else "TLS (ca_file)"
        message += f"; if the sidecar is there, it may want {hint}"
    return Unreachable(code.name.lower(), message, retry_seconds(error))


def retry_seconds(error: grpc.RpcError) -> float | None:
    """Returns after how many seconds the same request may succeed, as the error's details say, or None if it has no
    details. If a request exhausts resources and is told no time, it will never succeed, and the answer is infinite."""
    trailers: Any = error.trailing_metadata() or ()
    status = dict(trailers).get(_STATUS)
    if not isinstance(status, bytes):
        return None
    try:
        for detail in map(any_pb2.Any.FromString, _fields(status, _DETAILS)):
            if detail.TypeName() == _RETRY_INFO:
                delays = [Duration.FromString(delay) for delay in _fields(detail.value, _DELAY)]
                return max(0.0, sum(delay.seconds + delay.nanos / 1e9 for delay in delays))
    except (DecodeError, TypeError):  # it is no message, or has no submessage where one should be
        return None
    return math.inf if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else None


def _fields(message: bytes, number: int) -> list[bytes]:
    """Returns what a message of any type holds in this field."""
    fields: Any = UnknownFieldSet(Empty.FromString(message))
    return [field.data for field in fields if field.field_number == number]


def _cause(details: str) -> str:
    match = _CAUSE.search(details)
    if match is None:
        return details
    if match[1]:
        return f"the sidecar's certificate is not trusted: {match[1].strip()} (ca_file)"
    if match[2]:
        return "the sidecar's certificate is for another name than this address (server_name)"
    return "the sidecar does not speak TLS (ca_file)"


def status_lost(error: grpc.RpcError) -> bool:
    """Whether the call was refused and only the sidecar knows why, so that it may be made again."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _STATUS_LOST


def healthy(address: str, access: Access) -> bool:
    """Whether a sidecar at that address says that it serves requests. The question has a connection of its own."""
    try:
        with open_channel(address, access) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
            return bool(check(_HEALTH_REQUEST, timeout=PROBE_SECONDS, wait_for_ready=True) == _SERVING)
    except (grpc.RpcError, Untrusted):
        return False
