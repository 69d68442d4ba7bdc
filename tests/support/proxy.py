"""A TCP proxy between a client and a server that can be slow, and that cuts connections after so many bytes."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Listens on `port` and forwards to `target`. `bytes_per_second` bounds each direction of each connection; once
    `cut_after` bytes have passed in all, every connection is reset, and new ones until `mend`."""

    def __init__(self, target: int, bytes_per_second: float = float("inf")) -> None:
        self._target, self.bytes_per_second = target, bytes_per_second
        self.cut_after, self.passed = float("inf"), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after: int) -> None:
        self.passed, self.cut_after = 0, after

    def mend(self) -> None:
        self.cut_after = float("inf")

    def close(self) -> None:
        self._listener.close()
        self.cut(0)
        self._reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
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
