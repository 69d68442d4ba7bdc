"""gRPC channels to a sidecar, and what their errors mean."""

import grpc

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
# What grpc.aio says when it sends on while the sidecar has ended the call: the sidecar's own status is lost.
_STATUS_LOST = "Internal error from Core"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# grpc.health.v1: HealthCheckRequest(service=…) and HealthCheckResponse(status=SERVING), too small for a dependency.
_SERVICE = b"selector.v1.SelectorService"
_HEALTH_REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
_SERVING = b"\x08\x01"


def error_of(error: grpc.RpcError, address: str) -> SelectorClientError:
    """A failed call as one of ours."""
    code = error.code()
    kind = Unreachable if code in _NO_ANSWER else RemoteError
    return kind(code.name.lower(), f"{address}: {code.name}: {error.details() or ''}")


def status_lost(error: grpc.RpcError) -> bool:
    """Whether the call was refused, and only the sidecar knows why: it may be made again."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _STATUS_LOST


def healthy(address: str) -> bool:
    """Whether a sidecar at that address says that it serves requests; asks on a connection of its own."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        try:
            return bool(check(_HEALTH_REQUEST, timeout=PROBE_SECONDS, wait_for_ready=True) == _SERVING)
        except grpc.RpcError:
            return False
