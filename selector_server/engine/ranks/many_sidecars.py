"""Sidecars that select as one, each for its own trainer: each encodes its rank's candidates, then all draw together."""

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
from selector_proto.tensors import WireError

from selector_server.engine.agreement import Asked
from selector_server.engine.caller import Caller
from selector_server.engine.groups import Run
from selector_server.engine.joining import joint_plan, rank_settings, share
from selector_server.engine.peer_link import PeerLink
from selector_server.engine.preparation import Prepared
from selector_server.engine.selection import Scored
from selector_server.engine.stopwatch import timed
from selector_server.engine.task import Member, Result, Stages
from selector_server.engine.waiting import Waiting, reach
from selector_server.errors import InvalidRequest, NotPossible, SelectorError
from selector_server.sampling import PairScores, Picks, Plan
from selector_server.sampling.policies import Joint
from selector_server.sampling.quality import assess
from selector_server.sampling.sharded import ShardLost, ShardsDisagree, pick_sharded
from selector_server.telemetry.quality import NATS


class Peers:
    """Between preparation and `waiting`, in the place of Groups. `most` requests are under way at a time."""

    def __init__(self, link: PeerLink, waiting: Waiting, most: int) -> None:
        self._link, self._waiting = link, waiting
        # Beside event loop and worker: these threads wait for other sidecars.
        self._pool = ThreadPoolExecutor(most, "peers")
        self._under_way: dict[tuple[str, int], Asked] = {}

    @contextmanager
    def entered(self, member: Member | None) -> Iterator[Run]:
        """Gives what runs a prepared task: with the other sidecars, or alone without a `member`. An exception in the
        block, be it that the client went away, refuses all ranks. Raises GroupFailed."""
        if member is None:
            yield self._waiting.run
            return
        asked, key = Asked(self._link.current(), member), (member.group, member.step)
        if (older := self._under_way.get(key)) is not None:
            again = f"rank {member.rank} asked again while its first request was under way"
            self._pool.submit(self._fail, older, again)
            raise asked.failed(again)
        self._under_way[key] = asked
        try:
            yield lambda prepared, caller: self._run(asked, prepared, caller)
        except asyncio.CancelledError:
            self._pool.submit(self._fail, asked, f"rank {member.rank} went away")
            raise
        except Exception as error:
            known = isinstance(error, SelectorError | WireError)
            why = f"was refused: {error}" if known else "met an internal error"
            self._pool.submit(self._fail, asked, f"rank {member.rank} {why}")
            raise
        finally:
            del self._under_way[key]

    async def _run(self, asked: Asked, prepared: Prepared, caller: Caller) -> Result:
        task = prepared.task
        if not isinstance(task.policy, Joint):
            raise NotPossible("policy", repr(task.policy.name), "sidecars select as one by 'joint' only")
        scored = await self._waiting.score(prepared, caller)
        until = time.monotonic() + min(self._link.seconds, reach(caller.remaining()))
        caller.enter("sample")
        loop = asyncio.get_running_loop()
        together = copy_context().run
        return await loop.run_in_executor(self._pool, together, self._together, asked, prepared, scored, until)

    def _together(self, asked: Asked, prepared: Prepared, scored: Scored, until: float) -> Result:
        """This rank's share. Raises InvalidRequest and GroupFailed, as on all other sidecars."""
        started, task, seconds = time.monotonic(), prepared.task, self._link.seconds
        version = None if scored.weights is None else scored.weights.version
        record = {"settings": rank_settings(prepared).values, "seed": task.plan.seed, "weights": version}
        try:
            outcome = asked.outcome(record, until, seconds)
            if "invalid" in outcome:
                raise InvalidRequest(*outcome["invalid"])
            if "failed" in outcome:
                raise asked.failed(outcome["failed"])
            plan = joint_plan(task.plan, asked.member.world_size, outcome["seed"])
            stages = Stages()
            with asked.generation.turn(outcome["turn"]), timed(stages, "sample"):
                waited = time.monotonic() - started
                picks = self._draw(asked, scored, plan)
        except ShardsDisagree as error:
            raise asked.failed(str(error)) from error
        except (ShardLost, RuntimeError) as error:  # of torch.distributed, or of the draw, which others wait for
            self._link.lose(asked.generation)
            raise asked.failed(f"a sidecar was lost: {error}") from error
        result = Result(
            indices=picks.indices.cpu().numpy(),
            plan=plan,
            policy=task.policy.name,
            scores=picks.scores.cpu().numpy(),
            objective=picks.total / plan.picks,
            objective_uniform=None,  # its sample of candidates lies on all sidecars
            weights=scored.weights,
            stages=stages,
        )
        mine = share(result, prepared, asked.member.rank, waited)
        rows = picks.indices.new_tensor(mine.indices)
        return replace(mine, quality=assess(scored.scores.own(), rows, None, NATS))  # of this sidecar's candidates

    def _draw(self, asked: Asked, scored: Scored, plan: Plan) -> Picks:
        assert isinstance(scored.scores, PairScores)
        with torch.inference_mode():
            # All have read the outcome now, and none can end the draw before sidecar 0 begins it.
            met = dist.barrier(async_op=True)
            assert met is not None
            met.wait(timedelta(seconds=self._link.seconds))
            if asked.member.rank == 0:
                asked.forget()
            return pick_sharded(scored.scores, plan, timeout_seconds=self._link.seconds)

    def _fail(self, asked: Asked, limit: str) -> None:
        try:
            asked.fail(limit)
        except RuntimeError:  # no store, and so no generation that would wait for this rank
            self._link.lose(asked.generation)
