"""How a request's payload travels: through memory shared with a sidecar on this host, or in the stream."""

import logging
import os
import threading
import time
from typing import Any, TypeAlias

import grpc
from selector_proto.local import is_local
from selector_proto.shared_memory import read_token
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import RemoteError
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.shared_ring import Ring, Slot

log = logging.getLogger(__name__)

Metadata: TypeAlias = list[tuple[str, str]] | None

# Smaller payloads are as fast in the stream.
MIN_BYTES = 64 << 10
# Part of a request's time that asking the sidecar for its folder may take.
_ASK = 0.25
# After these, whether there is shared memory may still be found out.
_UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class Transport:
    """Sends Select requests of one `Selector`. `shared_memory` as there; ValueError if it cannot be had at all."""

    def __init__(self, address: str, shared_memory: bool | None) -> None:
        local = is_local(address)
        if shared_memory and not local:
            raise ValueError(f"shared_memory is True; {address!r} is not an address of this host")
        self._wanted, self._must = local and shared_memory is not False, bool(shared_memory)
        self._process, self._lock = os.getpid(), threading.Lock()
        self._asked = False
        self._ring: Ring | None = None

    def select(
        self, stub: Any, candidates: Candidates, header: pb.Selection, timeout: float, metadata: Metadata = None
    ) -> pb.SelectResponse:
        """The sidecar's answer, within `timeout` seconds; `metadata` go with the call. Raises grpc.RpcError, or
        RemoteError if shared memory is a must and the sidecar has none for this process."""
        deadline, payload = time.monotonic() + timeout, candidates.payload
        if self._wanted and payload.nbytes >= MIN_BYTES and (ring := self._ready(stub, timeout)) is not None:
            slot = _written(ring, candidates)
            if slot is not None:
                answer = self._shared(stub, candidates, header, deadline, metadata, ring, slot)
                if answer is not None:
                    return answer
        left = max(0.0, deadline - time.monotonic())
        response: pb.SelectResponse = stub.Select(candidates.messages(header), timeout=left, metadata=metadata)
        return response

    def close(self) -> None:
        """Removes this process's files."""
        ring = self._ring
        self._forget()
        if ring is not None:
            ring.close()

    def _shared(
        self,
        stub: Any,
        candidates: Candidates,
        header: pb.Selection,
        deadline: float,
        metadata: Metadata,
        ring: Ring,
        slot: Slot,
    ) -> pb.SelectResponse | None:
        """The answer, or None if the sidecar could not read the file: it may be another one than was asked."""
        selection = candidates.selection(header)
        selection.shared_memory.name, selection.shared_memory.generation = slot.name, slot.generation
        try:
            left = max(0.0, deadline - time.monotonic())
            messages = iter([pb.SelectRequest(selection=selection)])
            response: pb.SelectResponse = stub.Select(messages, timeout=left, metadata=metadata)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                self._leave(ring)
            if code is not grpc.StatusCode.INVALID_ARGUMENT or not details.startswith("shared_memory"):
                raise
            log.info("the sidecar cannot read shared memory, this payload goes in the stream: %s", details)
            self._leave(ring)
            return None
        finally:
            ring.give(slot)
        return response

    def _ready(self, stub: Any, timeout: float) -> Ring | None:
        """The ring in the sidecar's folder; it is asked once, and again after it was lost."""
        if self._process != os.getpid():
            self._forget()  # the parent's files are the parent's
        started, patience = time.monotonic(), timeout * _ASK
        if not self._lock.acquire(timeout=patience):
            return None  # another thread waits for the answer
        try:
            if self._asked:
                return self._ring
            left = max(1e-3, patience - (time.monotonic() - started))
            try:
                info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=left)
            except grpc.RpcError as error:
                self._asked = error.code() not in _UNANSWERED
                return None  # the request itself will say what is wrong
            reason = self._open(info)
            if reason and self._must:
                raise RemoteError("no_shared_memory", f"shared_memory is True; {reason}")
            self._asked = True
            return self._ring
        finally:
            self._lock.release()

    def _open(self, info: pb.GetServerInfoResponse) -> str:
        """Why there is no ring; empty if there is."""
        path = info.shared_memory_dir
        if not path:
            return "the sidecar has none (--shared-memory-dir)"
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                token = read_token(folder)
            finally:
                os.close(folder)
            if not token or token != info.shared_memory_token:
                return f"{path} is not the sidecar's folder here"
            if not os.access(path, os.W_OK | os.X_OK):
                return f"{path} may not be written"
            self._ring = Ring(path)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def _leave(self, ring: Ring) -> None:
        """The sidecar is asked anew before the next payload is shared."""
        with self._lock:
            if self._ring is ring:
                self._asked, self._ring = False, None  # its files go when the last request lets go of it

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._asked, self._ring = False, None


def _written(ring: Ring, candidates: Candidates) -> Slot | None:
    """A slot with the payload; None if none is free, or the folder is full or gone."""
    slot = None
    try:
        if (slot := ring.take()) is not None:
            slot.write(candidates.payload.parts(), candidates.payload.nbytes)
    except OSError as error:
        log.info("no room in shared memory, this payload goes in the stream: %s", error)
        if slot is not None:
            ring.drop(slot)
        return None
    return slot
