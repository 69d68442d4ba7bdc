"""Answers that are not a sidecar's: what proxies, login pages and load balancers say over HTTP/2 or HTTP/1.1."""

import contextlib
import socket
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def headers(status, fields) -> bytes:
    """As HPACK writes them without compression; `:status` is the eighth name of its table."""
    return b"\x08" + literal(str(status)) + b"".join(b"\0" + literal(n) + literal(v) for n, v in fields.items())


class ForeignServer:
    """Answers every request with a status, header fields and a body: over HTTP/2 as soon as a request begins, as nginx
    refuses what is too large, or over HTTP/1.1 whatever it is asked. `status` may be changed; `requests` counts."""

    def __init__(self, status, fields=None, body=b"<html></html>", *, http1=False) -> None:
        self.status, self.body, self.http1, self.requests = status, body, http1, 0
        self.fields = {"content-type": "text/html"} if fields is None else fields
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "ForeignServer":
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream) -> None:
        with contextlib.suppress(OSError, EOFError), stream:
            if self.http1:
                self.requests += 1
                stream.recv(65536)
                head = "".join(f"{n}: {v}\r\n" for n, v in self.fields.items())
                stream.sendall(f"HTTP/1.1 {self.status} No\r\n{head}content-length: {len(self.body)}\r\n\r\n".encode())
                stream.sendall(self.body)
                return
            with stream.makefile("rb") as file:
                self._read(file, len(PREFACE))
                stream.sendall(frame(SETTINGS, 0, 0))
                while True:
                    self._answer(stream, file)

    def _answer(self, stream, file) -> None:
        head = self._read(file, 9)
        payload = self._read(file, int.from_bytes(head[:3], "big"))
        kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == SETTINGS and not flags & ACK:
            stream.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            stream.sendall(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            self.requests += 1
            stream.sendall(frame(HEADERS, END_HEADERS, number, headers(self.status, self.fields)))
            time.sleep(0.02)  # gRPC now and then loses a status that comes in one piece with the end of its stream
            end = b"" if flags & END_STREAM else frame(RST_STREAM, 0, number, bytes(4))
            stream.sendall(frame(DATA, END_STREAM, number, self.body) + end)

    def _read(self, file, size) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise EOFError
        return data
