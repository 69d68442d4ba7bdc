"""The grpc.aio server with its services, health that follows the worker, and reflection."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from selector_proto.v1 import admin_pb2_grpc, inspection_pb2_grpc, selector_pb2_grpc

from selector_server.addresses import listen_at
from selector_server.config import Config
from selector_server.errors import SetupError
from selector_server.rpc.admin import AdminService
from selector_server.rpc.connections import Connections
from selector_server.rpc.inspection import InspectionService
from selector_server.rpc.security.access import Access
from selector_server.rpc.security.unix_socket import bound
from selector_server.rpc.service import SelectorService
from selector_server.rpc.status import OPERATORS, SERVICE, StatusInterceptor
from selector_server.telemetry.metrics import Metrics

# Health service names beside "" (the process is up): requests are served; weights are the newest ones.
READY = SERVICE
WEIGHTS = "weights"


# No trainer has as many under way. This bounds what is held for calls before they are admitted.
MAX_CALLS = 1024
MAX_CALLS_A_CONNECTION = 256  # One more waits at the client.
# A connection must have said by then what it wants, in TLS too.
HANDSHAKE_SECONDS = 5
# A call may be under way for so long after its connection came of age. None takes longer; dead ones are found by pings.
GRACE_SECONDS = 3600
MAX_METADATA_BYTES = 8 << 10


@dataclass(frozen=True)
class Services:
    """The services of one address; those of operators come together. Without any, it answers health checks alone, to
    everybody."""

    selector: SelectorService | None = None
    operators: tuple[AdminService, InspectionService] | None = None


class RpcServer:
    """Serves one address, the value of `setting`. Health is one for all addresses: `shared_health` is another
    server's."""

    def __init__(
        self,
        setting: str,
        config: Config,
        services: Services,
        access: Access,
        metrics: Metrics,
        shared_health: Any = None,
    ) -> None:
        service, operators = services.selector, services.operators
        self.setting, self.listen = setting, str(getattr(config, setting))
        _check_free(setting, self.listen)
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(metrics), access.interceptor],
            options=_options(config),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        # This is the aio servicer: the synchronous one keeps the process alive for ever after one Watch.
        self.health: Any = health.aio.HealthServicer() if shared_health is None else shared_health  # type: ignore[attr-defined]
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        if service is not None:
            selector_pb2_grpc.add_SelectorServiceServicer_to_server(  # type: ignore[no-untyped-call]
                service, self._server
            )
            names.append(SERVICE)
        if operators is not None:
            admin, inspection = operators
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)  # type: ignore[no-untyped-call]
            inspection_pb2_grpc.add_InspectionServiceServicer_to_server(  # type: ignore[no-untyped-call]
                inspection, self._server
            )
            names += OPERATORS
            if service is None:
                self._server.add_generic_rpc_handlers((admin.weights_status,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        calls = service is not None or operators is not None
        if config.reflection and calls:
            reflection.enable_server_reflection(names, self._server)
        self.port = self._bind(setting, config, access.credentials(self.listen) if calls else None)
        self.connections = Connections(setting, self.listen, self.port, config.max_connections)

    def _bind(self, setting: str, config: Config, credentials: grpc.ServerCredentials | None) -> int:
        """Binds the address and returns the port, 1 for a unix socket. Raises SetupError."""
        unix = self.listen.startswith("unix:")
        mode, group = int(config.socket_mode, 8), config.socket_group
        try:
            with bound(setting, self.listen, mode, group) if unix else nullcontext():
                if credentials is None:
                    return self._server.add_insecure_port(self.listen)
                return self._server.add_secure_port(self.listen, credentials)
        except RuntimeError as error:
            _check_free(setting, self.listen)  # says why, unless it is free again
            raise SetupError(setting, self.listen, f"cannot be bound: {error}") from error

    async def start(self) -> None:
        await self.set_health("", True)
        await self._server.start()

    async def set_health(self, name: str, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self.health.set(name, status.SERVING if healthy else status.NOT_SERVING)

    async def leave(self) -> None:
        """Health turns NOT_SERVING for good; requests are still answered."""
        await self.health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Closes the address; whatever still runs gets `grace` seconds."""
        await self._server.stop(grace)


def _options(config: Config) -> list[tuple[str, int]]:
    keepalive = _milliseconds(config.keepalive_seconds)
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", 64 << 20),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_CALLS_A_CONNECTION),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # Without the second line no ping is sent over a connection without calls, nor tolerated there.
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_timeout_ms", keepalive),
        # gRPC also pings to measure the bandwidth, and sends no other ping while it waits for that answer.
        ("grpc.http2.ping_timeout_ms", keepalive),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive // 2),
        ("grpc.max_connection_idle_ms", _milliseconds(config.max_connection_idle_seconds)),
        ("grpc.max_connection_age_ms", _milliseconds(config.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", GRACE_SECONDS * 1000),
        ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a twin
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _check_free(setting: str, listen: str) -> None:
    """Binds the address for a moment: grpc says only to its own log why it cannot. Raises SetupError."""
    if listen.startswith("unix:"):
        return
    try:
        listen_at(listen).close()
    except (OSError, ValueError) as error:
        raise SetupError(setting, listen, f"must be a free host:port or unix:/path: {error}") from error
