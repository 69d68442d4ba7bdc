"""The admin service: what an operator asks of the weights. Each call is a look at the store or one assignment in it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from selector_proto.v1 import admin_pb2 as pb
from selector_proto.v1 import admin_pb2_grpc as rpc
from selector_proto.v1 import selector_pb2

from selector_server.errors import InvalidRequest, NotPossible
from selector_server.rpc.status import SERVICE
from selector_server.weights.history import Event, Outcome
from selector_server.weights.versions import Versions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the type stubs only

_OUTCOMES = {
    Outcome.SERVED: pb.WEIGHTS_OUTCOME_SERVED,
    Outcome.REFUSED: pb.WEIGHTS_OUTCOME_REFUSED,
    Outcome.INCOMPLETE: pb.WEIGHTS_OUTCOME_INCOMPLETE,
}


class AdminService(rpc.AdminServiceServicer):
    """`store` is None without a learner: then there are no weights to ask about. `weights_status` is SelectorService's
    GetWeightsStatus, which `status` answers, for an address without that service: who may pin sees what is served."""

    def __init__(
        self, store: Versions[Any] | None, status: Callable[[], selector_pb2.GetWeightsStatusResponse]
    ) -> None:
        self._store = store

        async def answer(_: selector_pb2.GetWeightsStatusRequest, __: Context) -> selector_pb2.GetWeightsStatusResponse:
            return status()

        request, response = selector_pb2.GetWeightsStatusRequest, selector_pb2.GetWeightsStatusResponse
        method = grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)
        self.weights_status = grpc.method_handlers_generic_handler(SERVICE, {"GetWeightsStatus": method})

    async def ListWeightsHistory(  # noqa: N802
        self,
        request: pb.ListWeightsHistoryRequest,  # noqa: ARG002 - grpc's signature
        context: Context,  # noqa: ARG002
    ) -> pb.ListWeightsHistoryResponse:
        store = self._weights()
        return pb.ListWeightsHistoryResponse(
            events=map(_event, store.history()),
            pinnable_versions=sorted(store.pinnable()),
            pinned_version=store.pinned,
        )

    async def PinWeights(  # noqa: N802
        self,
        request: pb.PinWeightsRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.PinWeightsResponse:
        if not request.HasField("version"):
            raise InvalidRequest("version", "missing", "name the version to pin; 0 is the bundle's")
        version = self._weights().pin(request.version)
        return pb.PinWeightsResponse(version=version.version, trainer_step=version.trainer_step)

    async def UnpinWeights(  # noqa: N802
        self,
        request: pb.UnpinWeightsRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.UnpinWeightsResponse:
        version = self._weights().unpin()
        return pb.UnpinWeightsResponse(version=version.version, trainer_step=version.trainer_step)

    def _weights(self) -> Versions[Any]:
        if self._store is None:
            raise NotPossible("weights", "missing", "needs a learner; start the server with --learner")
        return self._store


def _event(event: Event) -> pb.WeightsEvent:
    return pb.WeightsEvent(
        version=event.version,
        trainer_step=event.trainer_step,
        outcome=_OUTCOMES[event.outcome],
        at=event.at,
        reason=event.reason,
        times=event.times,
    )
