"""Asks a sidecar for the best sub-batch of a super-batch, and never holds the trainer up for long."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import grpc
import numpy as np
from numpy.typing import ArrayLike
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_client.errors import RemoteError, SelectorClientError, Unreachable
from selector_client.request import Candidates, Ids, Images, ModelEmbeddings, Settings, Texts
from selector_client.selection import Selection, Statistics
from selector_client.transport import Transport

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # While a call waits for a connection, it is tried again often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Otherwise the channel that a forked child opens shares connections with the one its parent had.
    ("grpc.use_local_subchannel_pool", 1),
]
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Selector:
    """A connection to one sidecar; safe to use from several threads, and by a forked child, unless a thread was in
    the middle of a call when the process forked: gRPC cannot take that, use spawn or forkserver then.

    `timeout` seconds bound every selection. Whatever goes wrong on the way, `select` returns a uniform sub-batch of
    the same size, flagged in `Selection.fallback` and counted in `statistics`; with `on_error="raise"` it raises
    SelectorClientError instead. Mistakes of the caller (shapes, sizes, settings) always raise ValueError or
    TypeError. `seed` makes the picks of a run repeatable. `shared_memory`: large payloads go through memory that a
    sidecar on this host shares (None: where it can; False: never; True: a selection fails where it cannot).
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 10.0,
        seed: int | None = None,
        on_error: Literal["fallback", "raise"] = "fallback",
        shared_memory: bool | None = None,
        **settings: Any,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; must be positive")
        if on_error not in ("fallback", "raise"):
            raise ValueError(f"on_error is {on_error!r}; must be 'fallback' or 'raise'")
        self.settings = Settings(**settings)
        self.statistics = Statistics()
        self._address, self._timeout, self._on_error = address, timeout, on_error
        self._seed = secrets.randbits(64) if seed is None else seed
        self._transport = Transport(address, shared_memory)
        self._count = 0
        self._lock = threading.Lock()
        self._connection: tuple[int, grpc.Channel] | None = None
        self._warned: set[str] = set()

    def connect(self, timeout: float = 60.0) -> pb.GetServerInfoResponse:
        """Waits until the sidecar answers, and returns what it is. Optional: `select` connects by itself.

        Raises Unreachable.
        """
        request = pb.GetServerInfoRequest()
        info: pb.GetServerInfoResponse = self._call(
            lambda stub: stub.GetServerInfo(request, timeout=timeout, wait_for_ready=True)
        )
        return info

    def weights_status(self) -> pb.GetWeightsStatusResponse:
        """Which learner weights are served. Raises SelectorClientError."""
        request = pb.GetWeightsStatusRequest()
        status: pb.GetWeightsStatusResponse = self._call(
            lambda stub: stub.GetWeightsStatus(request, timeout=self._timeout)
        )
        return status

    def select(self, images: Images, texts: Texts, *, ids: Ids | None = None, step: int | None = None) -> Selection:
        """Picks from raw samples: images uint8 [B, H, W, C] at the learner's resolution or B encoded files; texts
        int token ids [B, T] or B strings. `ids` (B different integers or strings) name the samples, so that a sidecar
        with a cache need not embed them with the reference again. `step` is the trainer's step."""
        return self._select(Candidates.samples(images, texts, ids), step)

    def select_embeddings(
        self, learner: ModelEmbeddings | None, reference: ModelEmbeddings | None, *, step: int | None = None
    ) -> Selection:
        """Picks from embeddings that the trainer computed."""
        return self._select(Candidates.embeddings(learner, reference), step)

    def select_losses(
        self, learner: ArrayLike | None, reference: ArrayLike | None, *, step: int | None = None
    ) -> Selection:
        """Picks from one loss per candidate, float32 or float16 [B]; policies independent and uniform only."""
        return self._select(Candidates.losses(learner, reference), step)

    def close(self) -> None:
        """Ends the connection; a later call opens a new one."""
        with self._lock:
            if self._connection is not None and self._connection[0] == os.getpid():
                self._connection[1].close()
            self._connection = None
        self._transport.close()

    def __enter__(self) -> "Selector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _select(self, candidates: Candidates, step: int | None) -> Selection:
        picks = self.settings.picks(candidates.size)
        if step is None and self.settings.max_lag_steps is not None:
            raise ValueError(f"max_lag_steps is {self.settings.max_lag_steps}; it needs the step of each selection")
        with self._lock:
            seed = (self._seed + self._count) % (1 << 64)
            self._count += 1
        header = self.settings.header()
        header.seed = seed
        if step is not None:
            header.trainer_step = step
        started = time.perf_counter()
        try:
            response = self._call(lambda stub: self._transport.select(stub, candidates, header, self._timeout))
            try:
                selection = Selection.from_response(response, candidates.size, picks)
            except ValueError as error:
                raise RemoteError("wrong_answer", str(error)) from error
        except SelectorClientError as error:
            if self._on_error == "raise":
                raise
            self._warn(error)
            indices = np.random.default_rng(seed).choice(candidates.size, picks, replace=False)
            selection = Selection(indices=indices.astype(np.int64), fallback=error.reason, seed=seed)
        with self._lock:
            self.statistics.add(selection, candidates.size, time.perf_counter() - started)
        return selection

    def _call(self, call: Callable[[Any], Any]) -> Any:
        channel = self._channel()
        try:
            return call(rpc.SelectorServiceStub(channel))  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            code = error.code()
            details = error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                self._forget(channel)
            kind = Unreachable if code in _NO_ANSWER else RemoteError
            raise kind(code.name.lower(), f"{self._address}: {code.name}: {details}") from error
        except ValueError as error:  # the channel was closed under a running call
            raise Unreachable("closed", f"{self._address}: {error}") from error

    def _channel(self) -> grpc.Channel:
        """This process's channel: one made before a fork hangs or crashes after it, so it is left behind."""
        with self._lock:
            if self._connection is None or self._connection[0] != os.getpid():
                self._connection = (os.getpid(), grpc.insecure_channel(self._address, options=_OPTIONS))
            return self._connection[1]

    def _forget(self, channel: grpc.Channel) -> None:
        """Lets the next call open a new channel. Between calls nothing drives this one's attempts to reconnect: it
        may take 10 s to find a sidecar that is back. Not closed, for other threads' calls may still be in it."""
        with self._lock:
            if self._connection is not None and self._connection[1] is channel:
                self._connection = None

    def _warn(self, error: SelectorClientError) -> None:
        """Logs each kind of failure once; the statistics count them all."""
        if error.reason not in self._warned:
            self._warned.add(error.reason)
            log.warning("selection failed, uniform sub-batches instead until it works again: %s", error)
