"""Gives one request id one answer, for a while: a client that lost its connection asks again, for the same picks."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.admission import Admission
from selector_server.errors import InvalidRequest

KEPT_SECONDS = 120.0
KEPT_BYTES = 64 << 20
KEPT_REPLIES = 1024
# A client asks again that often, and its earlier calls may not be known to be gone yet.
MOST_WAITING = 2


@dataclass
class _Entry:
    request: bytes  # its digest
    checksum: int | None  # of its payload, if it named one
    response: pb.SelectResponse | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    made: float = 0.0


class Idempotency:
    """Keeps the answers of lately. It is used from the event loop only, so it needs no lock."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._replies = self._bytes = 0

    async def once(
        self, header: pb.Selection, held_bytes: int, make: Callable[[], Awaitable[pb.SelectResponse]]
    ) -> pb.SelectResponse:
        """What `make` returns, or returned for the same request earlier. While that one is under way, its reply is
        waited for, and the `held_bytes` of this one count; if it fails or its client leaves, this request is run.
        Raises InvalidRequest if the id belongs to another request, Overloaded if too many wait or hold too much, and
        what `make` raises."""
        name, request = header.request_id, _digest(header)
        checksum = header.payload_crc32 if header.HasField("payload_crc32") else None
        if not name:
            return await make()
        while (entry := self._entries.get(name)) is not None:
            if entry.request != request or (None not in (entry.checksum, checksum) and entry.checksum != checksum):
                raise InvalidRequest("request_id", repr(name), "another request has it; every one needs its own")
            if entry.response is not None:
                reply = pb.SelectResponse()
                reply.CopyFrom(entry.response)
                reply.repeated = True
                return reply
            await self._wait(entry, held_bytes)
        entry = self._entries[name] = _Entry(request, checksum)
        try:
            response = await make()
        except BaseException:
            del self._entries[name]
            raise
        finally:
            entry.done.set()
        entry.response, entry.made = response, time.monotonic()
        self._replies, self._bytes = self._replies + 1, self._bytes + response.ByteSize()
        self._entries.move_to_end(name)
        self._forget()
        return response

    async def _wait(self, entry: _Entry, held_bytes: int) -> None:
        if entry.waiting == MOST_WAITING:
            limit = f"at most {MOST_WAITING} wait for the first one's reply"
            raise self._admission.overloaded("calls with one request_id", entry.waiting + 2, limit, "pending")
        entry.waiting += 1
        try:
            with self._admission.enlarge(held_bytes) as held:
                held.taken()
                await entry.done.wait()
        finally:
            entry.waiting -= 1

    def _forget(self) -> None:
        """Lets the oldest replies go; requests under way are no replies yet."""
        oldest, gone = time.monotonic() - KEPT_SECONDS, []
        for name, entry in self._entries.items():
            if entry.response is None:
                continue
            if self._bytes <= KEPT_BYTES and self._replies <= KEPT_REPLIES and entry.made >= oldest:
                break
            self._replies, self._bytes = self._replies - 1, self._bytes - entry.response.ByteSize()
            gone.append(name)
        for name in gone:
            del self._entries[name]


def _digest(header: pb.Selection) -> bytes:
    """The digest of all that makes a request what it is, but for the way that its payload takes."""
    plain = pb.Selection()
    plain.CopyFrom(header)
    plain.ClearField("shared_memory")
    plain.ClearField("payload_crc32")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()
