"""A Select stream to its header and one buffer. The buffer's size is admitted before it is allocated."""

import asyncio
import zlib
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError
from selector_proto.v1 import selector_pb2 as pb

from selector_server.errors import InvalidRequest, LimitExceeded, TooLate
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.rpc.threads import in_thread


class Receiver:
    """Reads one stream, and the payload from `shared` where the stream says so."""

    def __init__(
        self, stream: AsyncIterator[pb.SelectRequest], pause_seconds: float, shared: SharedFolder | None = None
    ) -> None:
        self._stream, self._pause, self._shared = aiter(stream), pause_seconds, shared
        self._first: pb.SelectRequest | None = None

    async def header(self, max_payload_bytes: int) -> pb.Selection:
        """The first message's selection, its payload size within the limit."""
        self._first = await self._next()
        if self._first is None or not self._first.HasField("selection"):
            raise InvalidRequest("selection", "missing", "the first message must carry it")
        size = self._first.selection.payload_bytes
        if size > max_payload_bytes:
            raise LimitExceeded("payload_bytes", size, f"at most {max_payload_bytes}")
        return self._first.selection

    async def payload(self) -> memoryview:
        """The whole payload, read-only, its length and checksum verified."""
        assert self._first is not None
        selection = self._first.selection
        streamed = 0 if selection.HasField("shared_memory") else selection.payload_bytes
        view = await self._streamed(streamed)
        if selection.HasField("shared_memory"):
            if (shared := self._shared) is None:
                raise InvalidRequest("shared_memory", "set", "this server has none; send the payload in the stream")
            view = await in_thread(lambda _: shared.read(selection.shared_memory, selection.payload_bytes))
        if selection.HasField("payload_crc32"):
            crc = await in_thread(lambda _: zlib.crc32(view))
            if crc != selection.payload_crc32:
                raise InvalidRequest("payload_crc32", selection.payload_crc32, f"the payload received has {crc}")
        return view

    async def _streamed(self, size: int) -> memoryview:
        """All payload bytes of the stream, which must be `size`."""
        assert self._first is not None
        shared = self._first.selection.HasField("shared_memory")
        says = "shared_memory leaves none for the stream" if shared else f"payload_bytes says {size}"
        buffer, end = bytearray(size), 0
        message: pb.SelectRequest | None = self._first
        while message is not None:
            piece = message.payload
            if end + len(piece) > size:
                raise InvalidRequest("payload", f"over {end + len(piece)} bytes", says)
            buffer[end : end + len(piece)] = piece
            end += len(piece)
            message = await self._next()
            if message is not None and message.HasField("selection"):
                raise InvalidRequest("selection", "set again", "only the first message may carry it")
        if end != size:
            raise InvalidRequest("payload", f"{end} bytes", says)
        return memoryview(buffer).toreadonly()

    async def _next(self) -> pb.SelectRequest | None:
        try:
            async with asyncio.timeout(self._pause):
                return await anext(self._stream)
        except StopAsyncIteration:
            return None
        except DecodeError as error:
            raise InvalidRequest("message", "unreadable", "must be a selector.v1.SelectRequest") from error
        except TimeoutError as error:
            raise TooLate("stream", "silent", f"the next message must come within {self._pause} s") from error
