"""Serves /metrics to few at a time, however slow they are."""

import socket
from collections import OrderedDict
from contextlib import suppress
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from selector_server.addresses import listen_at

MAX_CONNECTIONS = 16
# The longest pause between two pieces of a request or of its answer.
PAUSE_SECONDS = 5.0


class MetricsServer:
    """One thread accepts, and each connection has one. Raises what `listen_at` raises."""

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        self._server = _Server(listen_at(address))
        self._server.set_app(make_wsgi_app(registry))
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = PAUSE_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name in the base class
        """Logs nothing: a scrape is no event."""


class _Server(ThreadingWSGIServer):
    """Cuts the oldest connection for one too many: whoever sends a byte now and then keeps no scrape away, which is
    over in milliseconds."""

    def __init__(self, listening: socket.socket) -> None:
        self._open: OrderedDict[Any, None] = OrderedDict()
        self._lock = Lock()
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # The base class made one of its own, which is not bound.
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            if len(self._open) > MAX_CONNECTIONS:
                self._cut(next(iter(self._open)))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a client that hangs up, or is cut, is no error of ours."""

    def _cut(self, request: socket.socket) -> None:
        """Its thread finds the end of the stream and closes it."""
        del self._open[request]
        with suppress(OSError):  # It is gone by itself.
            request.shutdown(socket.SHUT_RDWR)
