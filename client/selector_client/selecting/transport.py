"""Carries the payload of a request through memory shared with a sidecar on this host, or else in the stream."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from selector_proto.contract import is_local
from selector_proto.shared_memory import read_token
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import RemoteError
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.shared_ring import Ring, Slot

log = logging.getLogger(__name__)

Metadata: TypeAlias = list[tuple[str, str]] | None

# Smaller payloads are as fast in the stream as in shared memory.
MIN_BYTES = 64 << 10
# Asking the sidecar for its folder may take this part of a request's time.
_ASK = 0.25
# After these errors the client asks again whether there is shared memory.
_UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class Transport:
    """Sends the Select and Shortlist requests of one `Selector`. `shared_memory` means what it means there. `learn` is
    told what the sidecar is, once it is asked. Raises ValueError if shared memory is demanded of a sidecar on another
    host."""

    def __init__(
        self, address: str, shared_memory: bool | None, learn: Callable[[pb.GetServerInfoResponse], None]
    ) -> None:
        local = is_local(address)
        if shared_memory and not local:
            raise ValueError(f"shared_memory is True; {address!r} is not an address of this host")
        self._wanted, self._must = local and shared_memory is not False, bool(shared_memory)
        self._process, self._lock = os.getpid(), threading.Lock()
        self._asked, self._told = False, False
        self._ring: Ring | None = None
        self._learn = learn

    def send(
        self,
        stub: Any,
        method: str,
        candidates: Candidates,
        header: pb.Selection,
        timeout: float,
        metadata: Metadata = None,
    ) -> Any:
        """Returns the method's answer within `timeout` seconds. `metadata` go with the call. Raises grpc.RpcError, and
        RemoteError if shared memory is demanded and the sidecar has none for this process."""
        deadline, payload = time.monotonic() + timeout, candidates.payload
        if self._wanted and payload.nbytes >= MIN_BYTES and (ring := self._ready(stub, timeout)) is not None:
            slot = self._written(ring, candidates)
            if slot is not None:
                answer = self._shared(stub, method, candidates, header, deadline, metadata, ring, slot)
                if answer is not None:
                    return answer
        left = max(0.0, deadline - time.monotonic())
        return getattr(stub, method)(candidates.messages(header), timeout=left, metadata=metadata)

    def close(self) -> None:
        """Removes the files of this process."""
        ring = self._ring
        self._forget()
        if ring is not None:
            ring.close()

    def _shared(
        self,
        stub: Any,
        method: str,
        candidates: Candidates,
        header: pb.Selection,
        deadline: float,
        metadata: Metadata,
        ring: Ring,
        slot: Slot,
    ) -> Any:
        """Returns the answer, or None if the sidecar could not read the file, as a sidecar that was started since may
        not be able to."""
        selection = candidates.selection(header)
        selection.shared_memory.name, selection.shared_memory.generation = slot.name, slot.generation
        try:
            left = max(0.0, deadline - time.monotonic())
            messages = iter([pb.SelectRequest(selection=selection)])
            return getattr(stub, method)(messages, timeout=left, metadata=metadata)
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

    def _written(self, ring: Ring, candidates: Candidates) -> Slot | None:
        """Returns a slot that holds the payload, or None if no slot is free or the folder is full or gone. The log says
        so once, until there is room again."""
        slot = None
        try:
            if (slot := ring.take()) is not None:
                slot.write(candidates.payload.parts(), candidates.payload.nbytes)
                self._told = False
        except OSError as error:
            if not self._told:
                words = "no room for %d bytes in shared memory, payloads go in the stream, which is slower: %s"
                log.warning(words, candidates.payload.nbytes, error)
            self._told = True
            if slot is not None:
                ring.drop(slot)
            return None
        return slot

    def _ready(self, stub: Any, timeout: float) -> Ring | None:
        """Returns the ring in the sidecar's folder, if there is one. The sidecar is asked for its folder once, and
        again after it was lost."""
        if self._process != os.getpid():
            self._forget()  # a forked child leaves the files to its parent
        started, patience = time.monotonic(), timeout * _ASK
        if not self._lock.acquire(timeout=patience):
            return None  # another thread is still waiting for the answer
        try:
            if self._asked:
                return self._ring
            left = max(1e-3, patience - (time.monotonic() - started))
            try:
                info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=left)
            except grpc.RpcError as error:
                self._asked = error.code() not in _UNANSWERED
                return None  # the request itself will say what is wrong
            self._learn(info)
            reason = self._open(info)
            if reason and self._must:
                raise RemoteError("no_shared_memory", f"shared_memory is True; {reason}")
            self._asked = True
            return self._ring
        finally:
            self._lock.release()

    def _open(self, info: pb.GetServerInfoResponse) -> str:
        """Opens the ring. Returns why there is none, or an empty text if there is one."""
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
        """Makes the next request ask the sidecar anew before it shares a payload."""
        with self._lock:
            if self._ring is ring:
                self._asked, self._ring = False, None  # its files go when the last request lets go of it

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._asked, self._ring = False, None
