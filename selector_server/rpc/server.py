"""The grpc.aio server: services, health that follows the worker, reflection."""

import socket

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from selector_proto.v1 import admin_pb2_grpc, selector_pb2_grpc

from selector_server.errors import SetupError
from selector_server.rpc.admin import AdminService
from selector_server.rpc.service import SelectorService
from selector_server.rpc.status import ADMIN_SERVICE, SERVICE, StatusInterceptor
from selector_server.telemetry.metrics import Metrics

# Health service names beside "" (the process is up): requests are served; weights are the newest ones.
READY = SERVICE
WEIGHTS = "weights"


class RpcServer:
    """Serves one address, the value of `setting`. Either service may be left to another address."""

    def __init__(
        self,
        service: SelectorService | None,
        admin: AdminService | None,
        metrics: Metrics,
        setting: str,
        listen: str,
        max_message_bytes: int,
    ) -> None:
        _check_free(setting, listen)
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(metrics)],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a twin
            ],
        )
        # The aio servicer: the synchronous one keeps the process alive for ever after one Watch.
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        if service is not None:
            selector_pb2_grpc.add_SelectorServiceServicer_to_server(  # type: ignore[no-untyped-call]
                service, self._server
            )
            names.append(SERVICE)
        if admin is not None:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)  # type: ignore[no-untyped-call]
            names.append(ADMIN_SERVICE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(names, self._server)
        try:
            self.port: int = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise SetupError(setting, listen, "the address cannot be bound") from error

    async def start(self) -> None:
        await self.set_health("", True)
        await self._server.start()

    async def set_health(self, name: str, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(name, status.SERVING if healthy else status.NOT_SERVING)

    async def leave(self) -> None:
        """Health turns NOT_SERVING for good; requests are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Closes the address; whatever still runs gets `grace` seconds."""
        await self._server.stop(grace)


def _check_free(setting: str, listen: str) -> None:
    """Binds the address for a moment: grpc says only to its own log why it cannot. Raises SetupError."""
    if listen.startswith("unix:"):
        return
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, ValueError, OverflowError) as error:
        raise SetupError(setting, listen, f"must be a free host:port or unix:/path: {error}") from error
