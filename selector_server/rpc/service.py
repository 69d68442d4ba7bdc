"""The service: each method receives, hands to the engine, and answers. Errors become status in `status.py`."""

import time
from collections.abc import AsyncIterator, Callable, Mapping

from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_server.buffers import Pool
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
from selector_server.rpc.account import Account, Accounts
from selector_server.rpc.ranks import to_member
from selector_server.rpc.receive import Patience, Receiver
from selector_server.rpc.replies import Replies
from selector_server.rpc.shared_memory import SPARE, SharedFolder
from selector_server.rpc.status import Context
from selector_server.rpc.threads import in_thread
from selector_server.rpc.wire import to_task
from selector_server.sampling import Loss, Policy
from selector_server.telemetry import tracing
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.tracing import Tracing


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
        traces: Tracing | None = None,
    ) -> None:
        self._config, self._admission = config, admission
        self._preparation, self._selection = preparation, selection
        self._policies, self._metrics, self._default_loss = policies, metrics, default_loss
        self._info, self._status, self._shared = info, status, shared
        self._replies = Replies(admission)
        self._accounts = Accounts(metrics, traces, config.access_log)
        self._patience = Patience(config.receive_seconds, config.receive_min_bytes_per_second)
        self._pool = Pool(SPARE)
        admission.relieve_by(self._pool.clear)
        if shared is not None:
            admission.relieve_by(shared.pool.clear)
        waiting = Waiting(selection, worker, admission, metrics)
        self._groups: Groups | Peers
        if link is None:
            self._groups = Groups(waiting, admission, config.group_seconds)
        else:
            self._groups = Peers(link, waiting, config.max_pending_requests)

    async def Select(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SelectRequest], context: Context
    ) -> pb.SelectResponse:
        with self._accounts.of(context) as account:
            started = time.perf_counter()
            receiver = Receiver(request_iterator, self._patience, self._pool, self._shared)
            header = await receiver.header(self._config.max_payload_bytes, account.header)
            return await self._replies.once(
                header, receiver.held_bytes, lambda: self._run(receiver, header, account, started)
            )

    async def _run(
        self, receiver: Receiver, header: pb.Selection, account: Account, started: float
    ) -> pb.SelectResponse:
        member, caller = to_member(header, self._config), account.caller
        with self._groups.entered(member) as run, self._admission.admit(header.payload_bytes) as permit:
            payload = await receiver.payload()
            permit.taken()
            self._metrics.shm_payloads.inc(header.HasField("shared_memory"))
            received = time.perf_counter() - started
            tracing.past("receive", received)
            # Off the event loop: taking apart 100,000 texts takes a while, and health must answer meanwhile.
            parts = (header, payload, self._config, self._policies, self._default_loss)
            task = await in_thread(lambda: to_task(*parts))
            try:
                self._selection.check(task)
                self._selection.begin(task, None, caller, "preprocess", "preprocess")
                with self._admission.enlarge(self._preparation.extra_bytes(task)) as more:
                    prepared = await in_thread(lambda: self._preparation.run(task, caller.check), caller)
                    more.taken()
                    result = await run(prepared, caller)
            except StaleWeights:
                self._metrics.stale.labels("refuse").inc()
                raise
            result.stages.receive = received
        account.result(task, result)
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
