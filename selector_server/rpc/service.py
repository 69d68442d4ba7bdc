"""The service: each method receives, calls the engine, and answers. Errors become status in `status.py`."""

from collections.abc import AsyncIterator

from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_server.engine.candidates.base import Candidates
from selector_server.engine.engine import Engine
from selector_server.engine.request import Request, in_thread
from selector_server.engine.task import Task
from selector_server.rpc.call_log import CallLog
from selector_server.rpc.idempotency import Idempotency
from selector_server.rpc.receive import Receiver, Reception
from selector_server.rpc.responses import About, selected
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
        with self._call_log.request(context) as request:
            receiver = self._reception.receiver(request_iterator)
            most = self._reception.max_payload_bytes
            header = await receiver.header(most, lambda header: self._call_log.named(request, header))
            return await self._idempotency.once(
                header, receiver.held_bytes, lambda: self._select(request, receiver, header)
            )

    async def _select(self, request: Request, receiver: Receiver, header: pb.Selection) -> pb.SelectResponse:
        async def content() -> Task[Candidates]:
            payload = await receiver.payload()
            self._call_log.received(request, header)
            # This runs off the event loop: taking apart 100,000 texts takes a while, and health must answer meanwhile.
            return await in_thread(lambda: self._contract.task(header, payload))

        request.member, request.payload_bytes = self._contract.member(header), header.payload_bytes
        request.content = content
        result = await self._engine.select(request)
        return selected(request, result, self._about.unserved_weights())

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
