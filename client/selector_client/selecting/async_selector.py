"""The asyncio twin of Selector, with the same settings, fallbacks and statistics."""

import asyncio
import time
from types import TracebackType
from typing import Any, Literal

from numpy.typing import ArrayLike
from selector_proto.v1 import selector_pb2 as pb

from selector_client.errors import SelectorClientError, Unreachable
from selector_client.selecting import tracing
from selector_client.selecting.aio_link import AioLink
from selector_client.selecting.candidates import Candidates, Ids, Images, ModelEmbeddings, Tags, Texts
from selector_client.selecting.expectation import ASK_SHARE
from selector_client.selecting.pending import PendingSelection, View
from selector_client.selecting.selection import Selection
from selector_client.selecting.selector_base import SelectorBase
from selector_client.selecting.session import CONNECT_PAUSE_SECONDS, Session
from selector_client.selecting.transport import Metadata


class AsyncSelector(SelectorBase):
    """A selector for one event loop. Arguments, results and errors are those of Selector. Payloads always go in the
    stream and never through shared memory, because copying them there would hold the loop up."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        on_error: Literal["fallback", "raise"] = "fallback",
        **settings: Any,
    ) -> None:
        self._set_up(Session(address, timeout, seed, on_error, **settings))

    def __getstate__(self) -> Session:
        return self._session

    def __setstate__(self, session: Session) -> None:
        self._set_up(session)

    def _set_up(self, session: Session) -> None:
        self._link = AioLink(session.address, session.access, session.statistics)
        super().__init__(session, self._link)

    async def connect(self, timeout: float = 60.0, *, super_batch_size: int | None = None) -> pb.GetServerInfoResponse:
        """Waits until the sidecar answers, and returns what it is; `super_batch_size` is that of Selector.connect.
        Raises Unreachable (at once if it is Untrusted) and Denied."""
        request, deadline = pb.GetServerInfoRequest(), time.monotonic() + timeout
        while True:
            try:
                info: pb.GetServerInfoResponse = await self._link.call(
                    lambda stub: stub.GetServerInfo(request, timeout=max(deadline - time.monotonic(), 1e-3))
                )
                self._session.learn(info)
                self._session.foresee(super_batch_size)
                return info
            except Unreachable as error:
                if not self._session.keep_waiting(error, deadline):
                    raise
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)

    async def weights_status(self) -> pb.GetWeightsStatusResponse:
        """Returns which learner weights are served. Raises SelectorClientError."""
        request = pb.GetWeightsStatusRequest()
        status: pb.GetWeightsStatusResponse = await self._link.call(
            lambda stub: stub.GetWeightsStatus(request, timeout=self._session.timeout)
        )
        return status

    async def select(
        self,
        images: Images,
        texts: Texts,
        *,
        ids: Ids | None = None,
        reference: ModelEmbeddings | None = None,
        recent: ModelEmbeddings | None = None,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from raw samples, as Selector.select does."""
        candidates = self._session.samples(images, texts, ids, reference).with_recent(recent).with_tags(tags)
        return await self._select(candidates, step, timeout, sub_batch_size)

    async def select_by_ids(
        self,
        ids: Ids,
        view: View,
        *,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks and reads only candidates that go on, as Selector.select_by_ids does. The view is called on a thread
        beside the loop."""
        return await self._answered(self._session.begin_by_ids(ids, view, step, timeout, sub_batch_size))

    async def select_embeddings(
        self,
        learner: ModelEmbeddings | None,
        reference: ModelEmbeddings | None,
        *,
        learner_losses: ArrayLike | None = None,
        recent: ModelEmbeddings | None = None,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from embeddings that the trainer computed."""
        candidates = Candidates.embeddings(learner, reference, learner_losses).with_recent(recent).with_tags(tags)
        return await self._select(candidates, step, timeout, sub_batch_size)

    async def select_losses(
        self,
        learner: ArrayLike | None,
        reference: ArrayLike | None,
        *,
        tags: Tags | None = None,
        step: int | None = None,
        timeout: float | None = None,
        sub_batch_size: int | None = None,
    ) -> Selection:
        """Picks from one loss per candidate, as Selector.select_losses does."""
        return await self._select(Candidates.losses(learner, reference).with_tags(tags), step, timeout, sub_batch_size)

    async def close(self) -> None:
        """Ends the connection, and selections that are under way. A later one opens a new connection."""
        self._session.breaker.close()
        await self._link.close()

    async def __aenter__(self) -> "AsyncSelector":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _select(
        self, candidates: Candidates, step: int | None, timeout: float | None, sub_batch_size: int | None
    ) -> Selection:
        return await self._answered(self._session.begin(candidates, step, timeout, sub_batch_size))

    async def _answered(self, pending: PendingSelection) -> Selection:
        with tracing.span("selector.select") as span:
            selection = await self._answer(pending, span.metadata())
            span.done(selection.fallback, pending.retries)
            return selection

    async def _meet(self, pending: PendingSelection) -> None:
        """Asks the sidecar what it is, so that the selection gets the time that it needs."""
        request, seconds = pb.GetServerInfoRequest(), max(ASK_SHARE * pending.left, 1e-3)
        try:
            info = await self._link.call(lambda stub: stub.GetServerInfo(request, timeout=seconds), pending.closings)
        except SelectorClientError as error:
            self._session.expectation.unanswered(error)
        else:
            self._session.learn(info)
            self._session.allow(pending)

    async def _answer(self, pending: PendingSelection, metadata: Metadata) -> Selection:
        try:
            if pending.show is not None:
                await self._read(pending, metadata)
            return self._session.answered(pending, await self._ask("Select", pending, metadata))
        except SelectorClientError as error:
            if pending.show is None:
                return self._session.failed(pending, error)
            return await asyncio.to_thread(self._session.failed, pending, error)

    async def _read(self, pending: PendingSelection, metadata: Metadata) -> None:
        """Reads those of the candidates that go on, if the sidecar says which."""
        if self._session.shortlists():
            try:
                await asyncio.to_thread(pending.narrow, await self._ask("Shortlist", pending, metadata))
                return
            except SelectorClientError as error:
                self._session.no_shortlist(error)
        await asyncio.to_thread(pending.read_all)

    async def _ask(self, method: str, pending: PendingSelection, metadata: Metadata) -> Any:
        """Returns the answer to what is sent next, after as many attempts as may be. Raises SelectorClientError."""
        while True:
            try:
                self._session.check(pending)
                if self._session.expectation.asks(pending.candidates.header):
                    await self._meet(pending)
                return await self._link.call(
                    lambda stub: getattr(stub, method)(
                        pending.sent.messages(pending.header), timeout=max(pending.left, 1e-3), metadata=metadata
                    ),
                    pending.closings,
                )
            except SelectorClientError as error:
                if (pause := self._session.retry(pending, error)) is None:
                    raise
            await asyncio.sleep(pause)
