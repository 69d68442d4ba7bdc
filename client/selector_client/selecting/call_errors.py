"""Turns the errors of gRPC calls into the client's own."""

import math
import re
import socket
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from selector_client.errors import Denied, Misrouted, RemoteError, SelectorClientError, Unreachable, Untrusted
from selector_client.selecting.credentials import Access
from selector_client.selecting.foreign_answers import foreign_answer

# grpc.aio says this when it goes on sending after the call was ended by the other side, whose status is lost then.
_STATUS_LOST = ("Internal error from Core", "Error in HTTP transport completing operation")
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# google.rpc.Status has its details (Any) in field 3, and google.rpc.RetryInfo its retry_delay (Duration) in 1.
_STATUS, _DETAILS, _RETRY_INFO, _DELAY = "grpc-status-details-bin", 3, "google.rpc.RetryInfo", 1

_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# gRPC uses these words when one side does not trust the other, or does not speak TLS.
_UNTRUSTED = re.compile(r"(tls|ssl) handshake failed|verification check failed", re.IGNORECASE)
_CAUSE = re.compile(
    r"CERTIFICATE_VERIFY_FAILED: ([a-z -]+)|(Hostname Verification Check failed)|(WRONG_VERSION_NUMBER)"
)
# A server that wants a certificate of its client closes the connection without a word.
_CLOSED = "failed to connect to all addresses"
# So does one that has too many connections, but at once, where the other waits for a handshake.
_LOOK_SECONDS = 0.2


def error_of(error: grpc.RpcError, address: str, access: Access, trusted: bool = False) -> SelectorClientError:
    """Returns the client's error for a failed call. `trusted` says that neither side's certificates are wrong."""
    code, details = error.code(), error.details() or ""
    message = f"{address}: {code.name}: {details}"
    if (foreign := foreign_answer(error)) is not None:
        if foreign.passes:
            return Unreachable("unavailable", f"{message}; a proxy on the way said {foreign.said}")
        words = f"{address}: no sidecar answered, but something on the way, with {foreign.said}: {foreign.cause}"
        return Misrouted("proxy", words, 0.0 if foreign.status is None else None)
    if code in _DENIED:
        return Denied(code.name.lower(), f"{message} (token_file is {access.token_file or 'not set'})")
    if code not in _NO_ANSWER:
        return RemoteError(code.name.lower(), message, retry_seconds(error))
    if _UNTRUSTED.search(details):
        return Untrusted("untrusted", f"{address}: {_cause(details)}")
    if closed_silently(error):
        if trusted:
            message += "; it has as many connections as it takes (--max-connections), or a proxy finds no sidecar"
        else:
            hint = "a certificate of ours, which it trusts (certificate_file)" if access.secure else "TLS (ca_file)"
            message += f"; if the sidecar is there, it may want {hint}"
    return Unreachable(code.name.lower(), message, retry_seconds(error))


def closed_silently(error: grpc.RpcError) -> bool:
    """Whether the other side closed the connection without a word. `closes_at_once` may find out why."""
    details = error.details() or ""
    unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
    return unavailable and details.startswith(_CLOSED) and "Socket closed" in details


def closes_at_once(address: str) -> bool:
    """Whether a new connection is closed before anybody says a word, for which it waits a moment. One that wants TLS
    waits too."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _LOOK_SECONDS) as stream:
            return not stream.recv(1)
    except ConnectionResetError:
        return True
    except (OSError, ValueError):
        return False


def answered_by_sidecar(error: grpc.RpcError) -> bool:
    """Whether the status is the sidecar's own, which has details: others are made up on the way or by this side."""
    return _STATUS in dict(_trailers(error))


def pings_refused(error: grpc.RpcError) -> bool:
    """Whether the connection was ended because it was pinged too often."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "too many pings" in (error.details() or "").lower()


def retry_seconds(error: grpc.RpcError) -> float | None:
    """Returns after how many seconds the same request may succeed, as the error's details say, or None if it has no
    details. If a request exhausts resources and is told no time, it will never succeed, and the answer is infinite."""
    status = dict(_trailers(error)).get(_STATUS)
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


def _trailers(error: grpc.RpcError) -> Any:
    return error.trailing_metadata() or ()


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
    """Whether the call was refused and only the other side knows why, so that it may be made again."""
    return error.code() is grpc.StatusCode.INTERNAL and (error.details() or "").startswith(_STATUS_LOST)
