"""Reads a Select stream into its header and one buffer, whose size is admitted before it is allocated."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from selector_proto.v1 import selector_pb2 as pb

from selector_server.buffers import Pool
from selector_server.config import Config
from selector_server.engine.request import in_thread
from selector_server.errors import InvalidRequest, LimitExceeded, TooLate
from selector_server.rpc.shared_memory import SPARE, SharedFolder

# A header names a few tensors. Larger ones would hold the event loop up, wherever they are looked at.
MAX_HEADER_BYTES = 256 << 10
# Pieces are collected up to that many bytes and copied off the event loop: memory's first touch takes its time.
HOP_BYTES = 4 << 20
# Smaller payloads are copied where they are, and leave the pool's blocks to larger ones.
SMALL_BYTES = 1 << 20
# The stream of a client that left ends first, and then the call.
GONE_SECONDS = 0.05


@dataclass(frozen=True)
class Patience:
    """A message must come within `pause_seconds` of the last one, and all of them within that and the payload's time
    at `bytes_per_second` (0: any)."""

    pause_seconds: float
    bytes_per_second: int

    def total_seconds(self, payload_bytes: int) -> float:
        rate = self.bytes_per_second
        return self.pause_seconds + payload_bytes / rate if rate else float("inf")


class Reception:
    """How streams are received: with which patience, into which memory. `shared` is the folder where clients of this
    host leave payloads, if there is one."""

    def __init__(self, config: Config, shared: SharedFolder | None) -> None:
        self._patience = Patience(config.receive_seconds, config.receive_min_bytes_per_second)
        self._shared, self._pool = shared, Pool(SPARE)
        self.max_payload_bytes = config.max_payload_bytes

    def receiver(self, stream: AsyncIterator[pb.SelectRequest]) -> "Receiver":
        """What reads this stream."""
        return Receiver(stream, self._patience, self._pool, self._shared)

    def release_memory(self) -> int:
        """Lets go of the memory that is kept for later payloads, and returns its bytes."""
        return self._pool.clear() + (0 if self._shared is None else self._shared.pool.clear())


class Receiver:
    """Reads one stream into memory of `pool`, or the payload from `shared` where the stream says so."""

    def __init__(
        self,
        stream: AsyncIterator[pb.SelectRequest],
        patience: Patience,
        pool: Pool,
        shared: SharedFolder | None = None,
    ) -> None:
        self._stream, self._patience, self._pool, self._shared = aiter(stream), patience, pool, shared
        self._first: pb.SelectRequest | None = None
        self._end = float("inf")
        self._seconds = float("inf")

    async def header(
        self, max_payload_bytes: int, seen: Callable[[pb.Selection], None] = lambda _: None
    ) -> pb.Selection:
        """The first message's selection, its payload size within the limit; `seen` is shown it in any case."""
        self._first = await self._next()
        if self._first is None:
            await asyncio.sleep(GONE_SECONDS)
        if self._first is None or not self._first.HasField("selection"):
            raise InvalidRequest("selection", "missing", "the first message must carry it")
        if (length := self._first.selection.ByteSize()) > MAX_HEADER_BYTES:
            raise LimitExceeded("selection", f"{length} bytes", f"at most {MAX_HEADER_BYTES}")
        seen(self._first.selection)
        size = self._first.selection.payload_bytes
        if size > max_payload_bytes:
            raise LimitExceeded("payload_bytes", size, f"at most {max_payload_bytes}")
        return self._first.selection

    @property
    def held_bytes(self) -> int:
        """The bytes that came with the header."""
        return 0 if self._first is None else len(self._first.payload)

    async def payload(self) -> memoryview:
        """The whole payload, read-only, its length and checksum verified."""
        assert self._first is not None
        selection = self._first.selection
        streamed = 0 if selection.HasField("shared_memory") else selection.payload_bytes
        self._seconds = self._patience.total_seconds(streamed)
        self._end = time.monotonic() + self._seconds
        view = await self._streamed(streamed)
        if selection.HasField("shared_memory"):
            if (shared := self._shared) is None:
                raise InvalidRequest("shared_memory", "set", "this server has none; send the payload in the stream")
            view = await in_thread(lambda: shared.read(selection.shared_memory, selection.payload_bytes))
        if selection.HasField("payload_crc32"):
            crc = await in_thread(lambda: zlib.crc32(view))
            if crc != selection.payload_crc32:
                raise InvalidRequest("payload_crc32", selection.payload_crc32, f"the payload received has {crc}")
        return view

    async def _streamed(self, size: int) -> memoryview:
        """All payload bytes of the stream, which must be `size`."""
        assert self._first is not None
        shared = self._first.selection.HasField("shared_memory")
        says = "shared_memory leaves none for the stream" if shared else f"payload_bytes says {size}"
        # It is not filled with zeros: that would take the event loop's time, and memory for what may never come.
        buffer = self._pool.take(size) if size >= SMALL_BYTES else np.empty(size, np.uint8)
        pieces: list[bytes] = []
        end = copied = 0
        message: pb.SelectRequest | None = self._first
        while message is not None:
            piece = message.payload
            if end + len(piece) > size:
                raise InvalidRequest("payload", f"over {end + len(piece)} bytes", says)
            pieces.append(piece)
            end += len(piece)
            if end - copied >= HOP_BYTES:
                ready, start, pieces, copied = pieces, copied, [], end
                await in_thread(partial(_copy, buffer, start, ready))
            message = await self._next()
            if message is not None and message.HasField("selection"):
                raise InvalidRequest("selection", "set again", "only the first message may carry it")
        if end != size:
            await asyncio.sleep(GONE_SECONDS)
            raise InvalidRequest("payload", f"{end} bytes", says)
        if end - copied < SMALL_BYTES:
            _copy(buffer, copied, pieces)
        else:
            await in_thread(partial(_copy, buffer, copied, pieces))
        return buffer.data.toreadonly()

    async def _next(self) -> pb.SelectRequest | None:
        pause = self._patience.pause_seconds
        left = max(0.0, self._end - time.monotonic())
        try:
            async with asyncio.timeout(min(pause, left)):
                return await anext(self._stream)
        except StopAsyncIteration:
            return None
        except DecodeError as error:
            raise InvalidRequest("message", "unreadable", "must be a selector.v1.SelectRequest") from error
        except TimeoutError as error:
            if left < pause:
                rate = self._patience.bytes_per_second
                limit = f"all of it must come within {self._seconds:g} s, at {rate} bytes a second"
                raise TooLate("stream", "slow", limit) from error
            raise TooLate("stream", "silent", f"the next message must come within {pause} s") from error


def _copy(buffer: NDArray[np.uint8], start: int, pieces: list[bytes]) -> None:
    """Copies outside the interpreter's lock, which slices of a memoryview would hold."""
    for piece in pieces:
        buffer[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        start += len(piece)
