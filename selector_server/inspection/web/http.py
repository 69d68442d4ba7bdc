"""HTTP/1.1 for some browsers at a time, whatever they do: h11 reads and writes the protocol, and this file bounds
connections, sizes and time. It knows nothing of what is served."""

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from socket import socket

import h11

log = logging.getLogger(__name__)

# One more is let in, and the one that was silent for longest is cut: who only holds connections keeps nobody out.
MAX_CONNECTIONS = 64
MAX_HEAD_BYTES, MAX_BODY_BYTES = 16 << 10, 16 << 10
# A connection may be silent for so long, a request may take so long to arrive, and a piece of an answer to be read.
IDLE_SECONDS, REQUEST_SECONDS, WRITE_SECONDS = 60.0, 10.0, 10.0
HANDSHAKE_SECONDS = 5.0
READ_BYTES, WRITE_BYTES = 8 << 10, 64 << 10


@dataclass(frozen=True)
class Request:
    """`target` is a path, perhaps with a query; names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """A body that comes in pieces is sent as they come."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Answers requests with what `handle` returns, which must not raise. To be used by one event loop."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._connections: OrderedDict[_Connection, None] = OrderedDict()  # the one silent for longest first

    async def start(self, listening: socket, tls: ssl.SSLContext | None) -> asyncio.Server:
        handshake = None if tls is None else HANDSHAKE_SECONDS
        return await asyncio.start_server(
            self._serve, sock=listening, ssl=tls, ssl_handshake_timeout=handshake, limit=MAX_HEAD_BYTES, backlog=1024
        )

    def cut_all(self) -> None:
        for one in list(self._connections):
            one.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer)
        self._connections[connection] = None
        if len(self._connections) > MAX_CONNECTIONS:
            oldest, _ = self._connections.popitem(last=False)
            oldest.cut()
        try:
            while (request := await connection.receive()) is not None:
                if connection in self._connections:
                    self._connections.move_to_end(connection)
                if not await connection.send(await self._handle(request)):
                    break
            await connection.finish()
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.CancelledError):
            # It hung up, was cut, speaks another protocol, takes too long, or the server ends: no error of ours.
            pass
        except Exception:
            log.exception("an answer of the page broke off")
        finally:
            self._connections.pop(connection, None)
            connection.cut()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    def cut(self) -> None:
        """Ends it now, with whatever was not sent yet."""
        self._writer.transport.abort()

    async def finish(self) -> None:
        """Lets what was written go out before the connection is cut."""
        self._writer.close()
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.wait_closed()

    async def receive(self) -> Request | None:
        """Returns None after the last request. Raises OSError, TimeoutError and h11.ProtocolError."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._read()
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await self._next()
                if not isinstance(head, h11.Request):
                    return None
                body = bytearray()
                while isinstance(event := await self._next(), h11.Data):
                    body += event.data
                    if len(body) > MAX_BODY_BYTES:
                        raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            raise
        headers = {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in head.headers}
        return Request(head.method.decode(), head.target.decode("latin-1"), headers, bytes(body))

    async def send(self, response: Response) -> bool:
        """Returns whether the connection takes another request. Raises OSError, TimeoutError and h11.ProtocolError."""
        headers = [*response.headers.items()]
        if isinstance(response.body, bytes) and response.status != 304:
            headers.append(("content-length", str(len(response.body))))
        await self._write(h11.Response(status_code=response.status, headers=headers))
        if isinstance(response.body, bytes):
            whole = memoryview(response.body)
            for start in range(0, len(whole), WRITE_BYTES):
                await self._write(h11.Data(data=whole[start : start + WRITE_BYTES]))  # type: ignore[arg-type]
        else:
            async with aclosing(response.body) as pieces:  # type: ignore[type-var] # an async generator
                async for piece in pieces:
                    for start in range(0, len(piece), WRITE_BYTES):
                        await self._write(h11.Data(data=piece[start : start + WRITE_BYTES]))
        await self._write(h11.EndOfMessage())
        if self._protocol.our_state is h11.MUST_CLOSE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return True

    async def _read(self) -> None:
        """Waits for bytes, unless some are there that were not looked at yet."""
        if not self._protocol.trailing_data[0]:
            self._protocol.receive_data(await self._reader.read(READ_BYTES))

    async def _next(self) -> h11.Event:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(READ_BYTES))
        if event is h11.PAUSED:
            return h11.ConnectionClosed()
        assert isinstance(event, h11.Event)
        return event

    async def _write(self, event: h11.Event) -> None:
        """Writes the body's data as they are, without a copy, and waits until enough was read of what was written."""
        pieces = self._protocol.send_with_data_passthrough(event) or ()
        for piece in pieces if isinstance(event, h11.Data) else (b"".join(pieces),):
            self._writer.write(piece)
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()

    async def _refuse(self, status: int) -> None:
        """Says what was wrong to whoever speaks another protocol, if it is still to be said."""
        if self._protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._write(
                h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
            )
            await self._write(h11.EndOfMessage())
            await self.finish()
