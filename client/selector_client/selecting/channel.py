"""Opens gRPC channels to a sidecar, and says how its calls are made."""

from types import SimpleNamespace
from typing import Any

import grpc
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_client.selecting.credentials import Access

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    # While a call waits for a connection, gRPC tries again often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Without this the channel that a forked child opens would share connections with the channel of its parent.
    ("grpc.use_local_subchannel_pool", 1),
    # The sidecar is on this host or in this cluster, so calls never go through a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
]
# These bytes are HealthCheckRequest(service=…) and HealthCheckResponse(status=SERVING) of grpc.health.v1, which are too
# small to deserve a dependency.
_SERVICE = b"selector.v1.SelectorService"
_HEALTH_REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
_SERVING = b"\x08\x01"


def open_channel(address: str, access: Access, keepalive: float = 0.0) -> grpc.Channel:
    """Opens a blocking channel, which connects with the first call and pings every `keepalive` seconds (0: never).
    Raises Untrusted."""
    credentials, options = access.credentials(), options_of(access, keepalive)
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def open_aio_channel(address: str, access: Access, keepalive: float = 0.0) -> grpc.aio.Channel:
    """Opens a channel for asyncio, as `open_channel` does. Raises Untrusted."""
    credentials, options = access.credentials(), options_of(access, keepalive)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def options_of(access: Access, keepalive: float = 0.0) -> list[tuple[str, Any]]:
    """Returns OPTIONS, and with them the name that the sidecar's certificate must have, if that is set, and pings every
    `keepalive` seconds, also between calls. A connection that answers none in that time is closed."""
    options = list(OPTIONS)
    if access.secure and access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    if keepalive:
        milliseconds = round(keepalive * 1000)
        options += [
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            # gRPC also pings to measure the bandwidth, and sends no other ping while it waits for that answer.
            ("grpc.http2.ping_timeout_ms", milliseconds),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


def service(channel: Any, access: Access) -> Any:
    """Returns the calls of SelectorService, which send the present token beside their own metadata. Raises
    Untrusted."""
    stub, token = rpc.SelectorServiceStub(channel), access.metadata() or ()  # type: ignore[no-untyped-call]

    def known(call: Any) -> Any:
        return lambda *request, metadata=None, **options: call(
            *request, metadata=(*token, *(metadata or ())), **options
        )

    return SimpleNamespace(**{name: known(call) for name, call in vars(stub).items()})


def health_check(channel: Any, seconds: float) -> Any:
    """Asks whether requests are served, and returns the answer, or with asyncio the call that brings it."""
    return channel.unary_unary("/grpc.health.v1.Health/Check", None, None)(_HEALTH_REQUEST, timeout=seconds)


def is_serving(answer: object) -> bool:
    """Whether this answer to a health check says that they are."""
    return answer == _SERVING
