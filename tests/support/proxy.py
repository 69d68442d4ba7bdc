"""A TCP proxy between a client and a server that can be slow, cut connections after so many bytes, and freeze them."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Listens on `port` and forwards to `target`. `bytes_per_second` bounds each direction of each connection; once
    `cut_after` bytes have passed in all, every connection is reset, and new ones until `mend`. `accepted` counts
    connections."""

    def __init__(self, target: int, bytes_per_second: float = float("inf")) -> None:
        self._target, self.bytes_per_second = target, bytes_per_second
        self.cut_after, self.passed = float("inf"), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._closed = threading.Event()
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after: int) -> None:
        self.passed, self.cut_after = 0, after

    def mend(self) -> None:
        self.cut_after = float("inf")

    def freeze(self) -> None:
        """Nothing passes any more through the connections that there are, and nobody is told; new ones work."""
        self._frozen |= self._open

    def close(self) -> None:
        self._closed.set()
        self._listener.close()
        self.cut(0)
        self._reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                if self.passed >= self.cut_after:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # nobody is there: the client sees that
                    client.close()
                    continue
                self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if source in self._frozen:
                    self._closed.wait()
                    return
                self.passed += len(data)
                if self.passed >= self.cut_after:
                    self._reset()
                    return
                if self.bytes_per_second < float("inf"):
                    time.sleep(len(data) / self.bytes_per_second)
                sink.sendall(data)
        for end in (source, sink):
            self._shut(end)

    def _reset(self) -> None:
        for end in list(self._open):
            self._shut(end)

    def _shut(self, end: socket.socket) -> None:
        self._open.discard(end)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
