"""The service: each method receives, hands to the engine, and answers. Errors become status in `status.py`."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_server.config import Config
from selector_server.engine.admission import Admission
from selector_server.engine.groups import Groups
from selector_server.engine.peer_link import PeerLink
from selector_server.engine.peers import Peers
from selector_server.engine.preparation import Preparation
from selector_server.engine.selection import Selection
from selector_server.engine.task import Result, Task
from selector_server.engine.waiting import Waiting
from selector_server.engine.worker import Worker
from selector_server.errors import StaleWeights
from selector_server.rpc import reply
from selector_server.rpc.ranks import to_member
from selector_server.rpc.receive import Receiver
from selector_server.rpc.replies import Replies
from selector_server.rpc.shared_memory import SharedFolder
from selector_server.rpc.threads import in_thread
from selector_server.rpc.wire import to_task
from selector_server.sampling import Loss, Policy
from selector_server.telemetry.metrics import Metrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the type stubs only


class SelectorService(rpc.SelectorServiceServicer):
    """`link` leads to the sidecars that select as one with this one; `info` and `status` give the two answers that
    need no device."""

    def __init__(
        self,
        config: Config,
        admission: Admission,
        preparation: Preparation,
        worker: Worker,
        selection: Selection,
        policies: Mapping[str, Policy],
        metrics: Metrics,
        link: PeerLink | None,
        default_loss: Loss,
        info: Callable[[], pb.GetServerInfoResponse],
        status: Callable[[], pb.GetWeightsStatusResponse],
        shared: SharedFolder | None = None,
    ) -> None:
        self._config, self._admission = config, admission
        self._preparation, self._selection = preparation, selection
        self._policies, self._metrics, self._default_loss = policies, metrics, default_loss
        self._info, self._status, self._shared = info, status, shared
        self._replies = Replies()
        waiting = Waiting(selection, worker, admission, metrics)
        self._groups: Groups | Peers
        if link is None:
            self._groups = Groups(waiting, admission, config.group_seconds)
        else:
            self._groups = Peers(link, waiting, config.max_pending_requests)

    async def Select(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SelectRequest], context: Context
    ) -> pb.SelectResponse:
        started = time.perf_counter()
        receiver = Receiver(request_iterator, self._config.receive_seconds, self._shared)
        header = await receiver.header(self._config.max_payload_bytes)
        return await self._replies.once(header, lambda: self._run(receiver, header, context, started))

    async def _run(
        self, receiver: Receiver, header: pb.Selection, context: Context, started: float
    ) -> pb.SelectResponse:
        member = to_member(header, self._config)
        with self._groups.entered(member) as run, self._admission.admit(header.payload_bytes):
            payload = await receiver.payload()
            self._metrics.shm_payloads.inc(header.HasField("shared_memory"))
            received = time.perf_counter() - started
            # Off the event loop: taking apart 100,000 texts takes a while, and health must answer meanwhile.
            parts = (header, payload, self._config, self._policies, self._default_loss)
            task = await in_thread(lambda _: to_task(*parts))
            try:
                self._selection.check(task)
                with self._admission.enlarge(self._preparation.extra_bytes(task)):
                    prepared = await in_thread(lambda abandoned: self._preparation.run(task, abandoned))
                    result = await run(prepared, context.time_remaining)
            except StaleWeights:
                self._metrics.stale.labels("refuse").inc()
                raise
            result.stages.receive = received
        self._count(task, result)
        return reply.selected(task, result)

    async def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,  # noqa: ARG002 - grpc's signature
        context: Context,  # noqa: ARG002
    ) -> pb.GetServerInfoResponse:
        return self._info()

    async def GetWeightsStatus(  # noqa: N802
        self,
        request: pb.GetWeightsStatusRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.GetWeightsStatusResponse:
        return self._status()

    def _count(self, task: Task, result: Result) -> None:
        metrics = self._metrics
        for stage, seconds in vars(result.stages).items():
            metrics.stage_seconds.labels(stage).observe(seconds)
        metrics.candidates.inc(task.size)
        metrics.picks.inc(len(result.indices))
        metrics.super_batch.observe(task.size)
        metrics.cached.inc(result.cached)
        metrics.uncached.inc(result.uncached)
        if result.weights is not None and result.weights.lag_steps is not None:
            metrics.weights_lag.set(result.weights.lag_steps)
        if result.weights is not None and result.weights.stale:
            metrics.stale.labels("serve").inc()
        if result.objective is not None and result.objective_uniform is not None:
            metrics.objective.labels("picks").set(result.objective)
            metrics.objective.labels("uniform").set(result.objective_uniform)
        if (quality := result.quality) is not None:
            picked, left = ((part.counts, part.total) for part in (quality.picked, quality.left))
            criterion = task.criterion.name.lower()
            metrics.quality.observe(criterion, picked, left, quality.top_share, quality.uniform_overlap)
