"""Every rank has a sidecar of its own: each encodes its rank's candidates, then all of them draw together."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from selector_server.engine.candidates.base import Scorable
from selector_server.engine.dispatcher import Dispatcher, reach
from selector_server.engine.ranks.agreement import Asked
from selector_server.engine.ranks.base import Run, losing
from selector_server.engine.ranks.joining import joint_plan, rank_settings, share
from selector_server.engine.ranks.process_group import Peers, ProcessGroup
from selector_server.engine.request import Request
from selector_server.engine.scorer import Observer, locality, own_losses
from selector_server.engine.task import Result, ServedWeights, Task
from selector_server.errors import InvalidRequest, NotPossible
from selector_server.sampling import PairScores, Picks, Plan, Scores
from selector_server.sampling.policies import Joint
from selector_server.sampling.quality import assess
from selector_server.sampling.sharded import ShardLost, ShardsDisagree, pick_sharded
from selector_server.telemetry.quality_metrics import NATS


class ManySidecars:
    """Every rank has a sidecar of its own. `most` requests are under way at a time."""

    def __init__(self, peers: Peers, dispatcher: Dispatcher, most: int, observer: Observer | None = None) -> None:
        self._group, self._dispatcher, self._observer = ProcessGroup(peers), dispatcher, observer
        # These threads wait for other sidecars, beside event loop and worker.
        self._pool = ThreadPoolExecutor(most, "peers")
        self._under_way: dict[tuple[str, int], Asked] = {}

    def start(self) -> None:
        self._group.start()

    def stop(self) -> None:
        self._group.stop()

    @contextmanager
    def entered(self, request: Request) -> Iterator[Run]:
        if (member := request.member) is None:
            yield self._dispatcher.select
            return
        asked, key = Asked(self._group.current(), member), (member.group, member.step)
        if (older := self._under_way.get(key)) is not None:
            again = f"rank {member.rank} asked again while its first request was under way"
            self._pool.submit(self._fail, older, again)
            raise asked.failed(again)
        self._under_way[key] = asked
        try:
            with losing(lambda why: self._pool.submit(self._fail, asked, f"rank {member.rank} {why}")):
                yield lambda task, request: self._run(asked, task, request)
        finally:
            del self._under_way[key]

    async def _run(self, asked: Asked, task: Task[Scorable], request: Request) -> Result:
        if not isinstance(task.policy, Joint):
            raise NotPossible("policy", repr(task.policy.name), "sidecars select as one by 'joint' only")
        scores, weights = await self._dispatcher.score(task, request)
        seconds, left = self._group.seconds, reach(request.remaining())
        until, late = time.monotonic() + min(seconds, left), f"within {seconds:g} s" if seconds <= left else "in time"
        request.enter("sample")

        def together() -> Result:
            return self._together(asked, task, request, scores, weights, until, late)

        return await asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, together)

    def _together(
        self,
        asked: Asked,
        task: Task[Scorable],
        request: Request,
        scores: Scores,
        weights: ServedWeights | None,
        until: float,
        late: str,
    ) -> Result:
        """This rank's share. Raises InvalidRequest and GroupFailed, as on all other sidecars."""
        started, rank = time.monotonic(), asked.member.rank
        version = None if weights is None else weights.version
        record = {"settings": rank_settings(rank, task).values, "seed": task.plan.seed, "weights": version}
        try:
            outcome = asked.outcome(record, until, late)
            if "invalid" in outcome:
                raise InvalidRequest(*outcome["invalid"])
            if "failed" in outcome:
                raise asked.failed(outcome["failed"])
            plan = joint_plan(task.plan, asked.member.world_size, outcome["seed"])
            with asked.generation.turn(outcome["turn"]), request.timed("sample"):
                request.spent("group", time.monotonic() - started)
                picks = self._draw(asked, scores, plan)
        except ShardsDisagree as error:
            raise asked.failed(str(error)) from error
        except (ShardLost, RuntimeError) as error:  # torch.distributed raises it, or the draw that others wait for.
            self._group.lose(asked.generation)
            raise asked.failed(f"a sidecar was lost: {error}") from error
        result = Result(
            indices=picks.indices.cpu().numpy(),
            plan=plan,
            policy=task.policy.name,
            scores=picks.scores.cpu().numpy(),
            objective=picks.total / plan.picks,
            objective_uniform=None,  # Its sample of candidates lies on all sidecars.
            weights=weights,
        )
        mine = share(result, task, rank)
        rows = torch.tensor(mine.indices, device=picks.indices.device)
        # These two are of this sidecar's candidates.
        quality, alike = assess(scores.own(), rows, None, NATS, scores.open), locality(task, scores, rows)
        mine = replace(mine, quality=quality, locality=alike, losses=own_losses(task, scores, rows))
        if self._observer is not None:
            self._observer.observe(task, scores, mine, picks.near)
        return mine

    def _draw(self, asked: Asked, scores: Scores, plan: Plan) -> Picks:
        assert isinstance(scores, PairScores)
        with torch.inference_mode():
            # All have read the outcome now, and none can end the draw before sidecar 0 begins it.
            met = dist.barrier(async_op=True)
            assert met is not None
            met.wait(timedelta(seconds=self._group.seconds))
            if asked.member.rank == 0:
                asked.forget()
            return pick_sharded(scores, plan, timeout_seconds=self._group.seconds)

    def _fail(self, asked: Asked, limit: str) -> None:
        try:
            asked.fail(limit)
        except RuntimeError:  # There is no store, and so no generation that would wait for this rank.
            self._group.lose(asked.generation)
