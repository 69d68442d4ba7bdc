"""The asyncio twin of Selector: the same settings, fallbacks and statistics."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal

import grpc
from numpy.typing import ArrayLike
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import RemoteError, SelectorClientError, Unreachable
from selector_client.selecting import tracing
from selector_client.selecting.candidates import Candidates, Ids, Images, ModelEmbeddings, Settings, Texts
from selector_client.selecting.channel import error_of, open_aio_channel, service, status_lost
from selector_client.selecting.selection import Selection, Statistics
from selector_client.selecting.session import CONNECT_PAUSE_SECONDS, Ask, Core
from selector_client.selecting.transport import Metadata


class AsyncSelector:
    """Selector for one event loop; arguments, results and errors are those of Selector. Payloads go in the stream,
    never through shared memory: copying would hold the loop up."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 10.0,
        seed: int | None = None,
        on_error: Literal["fallback", "raise"] = "fallback",
        **settings: Any,
    ) -> None:
        self.core = Core(address, timeout, seed, on_error, **settings)
        self._channel: grpc.aio.Channel | None = None

    @property
    def settings(self) -> Settings:
        """How it picks."""
        return self.core.settings

    @property
    def statistics(self) -> Statistics:
        """Counts since the start."""
        return self.core.statistics

    async def connect(self, timeout: float = 60.0) -> pb.GetServerInfoResponse:
        """Waits until the sidecar answers, and returns what it is. Raises Unreachable, at once if it is Untrusted, and
        Denied."""
        request, deadline = pb.GetServerInfoRequest(), time.monotonic() + timeout
        while True:
            try:
                info: pb.GetServerInfoResponse = await self._call(
                    lambda stub: stub.GetServerInfo(request, timeout=max(deadline - time.monotonic(), 1e-3))
                )
                return info
            except Unreachable as error:
                if not self.core.again(error, deadline):
                    raise
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)

    async def weights_status(self) -> pb.GetWeightsStatusResponse:
        """Which learner weights are served. Raises SelectorClientError."""
        request = pb.GetWeightsStatusRequest()
        status: pb.GetWeightsStatusResponse = await self._call(
            lambda stub: stub.GetWeightsStatus(request, timeout=self.core.timeout)
        )
        return status

    async def select(
        self,
        images: Images,
        texts: Texts,
        *,
        ids: Ids | None = None,
        step: int | None = None,
        timeout: float | None = None,
    ) -> Selection:
        """Picks from raw samples; see Selector.select."""
        return await self._select(Candidates.samples(images, texts, ids), step, timeout)

    async def select_embeddings(
        self,
        learner: ModelEmbeddings | None,
        reference: ModelEmbeddings | None,
        *,
        step: int | None = None,
        timeout: float | None = None,
    ) -> Selection:
        """Picks from embeddings that the trainer computed."""
        return await self._select(Candidates.embeddings(learner, reference), step, timeout)

    async def select_losses(
        self,
        learner: ArrayLike | None,
        reference: ArrayLike | None,
        *,
        step: int | None = None,
        timeout: float | None = None,
    ) -> Selection:
        """Picks from one loss per candidate; see Selector.select_losses."""
        return await self._select(Candidates.losses(learner, reference), step, timeout)

    async def close(self) -> None:
        """Ends the connection; a later call opens a new one."""
        self.core.breaker.close()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def __aenter__(self) -> "AsyncSelector":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _select(self, candidates: Candidates, step: int | None, timeout: float | None) -> Selection:
        ask = self.core.begin(candidates, step, timeout)
        with tracing.span("selector.select") as span:
            selection = await self._answer(ask, span.metadata())
            span.done(selection.fallback, ask.retries)
            return selection

    async def _answer(self, ask: Ask, metadata: Metadata) -> Selection:
        candidates, header = ask.candidates, ask.header
        while True:
            try:
                self.core.check()
                response = await self._call(
                    lambda stub: stub.Select(
                        candidates.messages(header), timeout=max(ask.left, 1e-3), metadata=metadata
                    )
                )
                return self.core.answered(ask, response)
            except SelectorClientError as error:
                if (pause := self.core.retry(ask, error)) is None:
                    return self.core.failed(ask, error)
            await asyncio.sleep(pause)

    async def _call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        if self._channel is None:
            self._channel = open_aio_channel(self.core.address, self.core.access)
        try:
            return await call(service(self._channel, self.core.access))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._channel = None  # the next call opens one; other calls may still be in this one
            if status_lost(error):
                raise RemoteError("unavailable", f"{self.core.address}: refused while the request was sent") from error
            raise error_of(error, self.core.address, self.core.access) from error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise Unreachable("cancelled", f"{self.core.address}: closed while a request was under way") from error
        except grpc.aio.UsageError as error:  # the channel was closed under a running call
            raise Unreachable("closed", f"{self.core.address}: {error}") from error
