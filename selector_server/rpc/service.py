"""The service: each method receives, calls the engine, and answers. Errors become status in `status.py`."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_server.engine.engine import Engine
from selector_server.engine.request import Request, in_thread
from selector_server.engine.task import Task
from selector_server.rpc.call_log import CallLog
from selector_server.rpc.idempotency import Idempotency
from selector_server.rpc.receive import Receiver, Reception
from selector_server.rpc.responses import About, selected, shortlisted
from selector_server.rpc.status import Context
from selector_server.rpc.wire import Contract


class SelectorService(rpc.SelectorServiceServicer):
    """`about` gives the two answers that need no device."""

    def __init__(
        self,
        engine: Engine,
        reception: Reception,
        contract: Contract,
        idempotency: Idempotency,
        call_log: CallLog,
        about: About,
    ) -> None:
        self._engine, self._reception, self._contract = engine, reception, contract
        self._idempotency, self._call_log, self._about = idempotency, call_log, about

    async def Select(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SelectRequest], context: Context
    ) -> pb.SelectResponse:
        with self._call_log.request(context, "Select") as request:
            receiver, header = await self._header(request, request_iterator)
            return await self._idempotency.once(
                header, receiver.held_bytes, lambda: self._select(request, receiver, header)
            )

    async def _select(self, request: Request, receiver: Receiver, header: pb.Selection) -> pb.SelectResponse:
        request.member = self._contract.member(header)
        self._give_content(request, receiver, header, self._contract.task)
        result = await self._engine.select(request)
        return selected(request, result, self._about.unserved_weights())

    async def Shortlist(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SelectRequest], context: Context
    ) -> pb.ShortlistResponse:
        with self._call_log.request(context, "Shortlist") as request:
            receiver, header = await self._header(request, request_iterator)
            self._give_content(request, receiver, header, self._contract.shortlist)
            task = await self._engine.shortlist(request)
            self._call_log.shortlisted(task)
            return shortlisted(request, task)

    async def _header(self, request: Request, stream: AsyncIterator[pb.SelectRequest]) -> tuple[Receiver, pb.Selection]:
        """What reads the stream, and its header."""
        receiver = self._reception.receiver(stream)
        most = self._reception.max_payload_bytes
        return receiver, await receiver.header(most, lambda header: self._call_log.named(request, header))

    def _give_content(
        self,
        request: Request,
        receiver: Receiver,
        header: pb.Selection,
        read: Callable[[pb.Selection, memoryview], Task[Any]],
    ) -> None:
        """Gives the request its content, which `read` makes of header and payload once it was admitted."""

        async def content() -> Task[Any]:
            payload = await receiver.payload()
            self._call_log.received(request, header)
            # This runs off the event loop: taking apart 100,000 texts takes a while, and health must answer meanwhile.
            return await in_thread(lambda: read(header, payload))

        request.payload_bytes, request.content = header.payload_bytes, content

    async def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,  # noqa: ARG002 - grpc's signature
        context: Context,  # noqa: ARG002
    ) -> pb.GetServerInfoResponse:
        return self._about.info()

    async def GetWeightsStatus(  # noqa: N802
        self,
        request: pb.GetWeightsStatusRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.GetWeightsStatusResponse:
        return self._about.weights_status()
