"""How a group's step ends where real processes would need luck: while the draw runs, and long afterwards."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from support.model import POLICIES, plan

from selector_server.engine.admission import Admission
from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.engine.ranks import one_sidecar as module
from selector_server.engine.ranks.one_sidecar import OneSidecar
from selector_server.engine.request import Request
from selector_server.engine.task import Member, Result, Rule, Task
from selector_server.errors import Draining, GroupFailed, InvalidRequest, NotPossible, Overloaded
from selector_server.sampling import Criterion, Loss
from selector_server.telemetry.metrics import Metrics

BYTES = 1000


class Draw:
    """Runs joint tasks as the worker does, each only after `go`; picks the first of every rank."""

    def __init__(self):
        self.go, self.begun, self.error = asyncio.Event(), asyncio.Event(), None
        self.remaining: list[float | None] = []
        self.cancelled = 0

    async def select(self, task, request):
        self.begun.set()
        self.remaining.append(request.remaining())
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        share, quota = task.size // task.plan.ranks, task.plan.picks // task.plan.ranks
        indices = np.concatenate([np.arange(quota) + rank * share for rank in range(task.plan.ranks)])
        return Result(indices, task.plan, "independent", None, None, None, None)


def prepared(rank, size=10, gain=100.0):
    candidates = ScalarLosses(np.zeros(size, np.float32), None)
    kind = {
        "policy": POLICIES["independent"],
        "rule": Rule(Criterion.HARD_LEARNER, Criterion.HARD_LEARNER, Loss.SIGMOID),
    }
    return Task(candidates, plan=plan(2, 1, gain=gain, seed=rank), **kind)


def request_of(rank, world=2, step=0, left=None):
    request = Request(left)
    request.member = Member("g", step, rank, world)
    return request


async def ask(ranks, rank, left=None, world=2, step=0, **about):
    request = request_of(rank, world, step, left)
    with ranks.entered(request) as run:
        return await run(prepared(rank, **about), request)


@pytest.fixture
def life():
    """Runs a test's coroutine function with groups, their draw and admission."""

    def run(body, seconds=5.0):
        async def main():
            draw = Draw()
            admission = Admission(8, BYTES, Metrics())
            await body(SimpleNamespace(draw=draw, admission=admission, ranks=OneSidecar(draw, admission, seconds)))

        asyncio.run(main())

    return run


async def drawing(at, ranks=2, **about):
    """Ranks that have all come, and whose draw has begun."""
    asking = [asyncio.create_task(ask(at.ranks, rank, world=ranks, **about)) for rank in range(ranks)]
    await at.draw.begun.wait()
    return asking


async def outcomes(asking):
    return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)


def refused(answers, text):
    assert all(isinstance(answer, GroupFailed) and text in str(answer) for answer in answers), answers


def forgotten(at):
    """Nothing of a party is left."""
    return not at.ranks._parties


def test_every_rank_gets_its_own_picks_with_the_seed_of_rank_0(life):
    async def body(at):
        asking = await drawing(at)
        at.draw.go.set()
        first, second = await outcomes(asking)
        assert first.indices.tolist() == second.indices.tolist() == [0, 1]
        assert (first.plan.seed, second.plan.seed, second.plan.sizes) == (0, 0, (2,))
        assert forgotten(at)

    life(body)


def test_the_draw_has_the_time_of_the_earliest_deadline(life):
    async def body(at):
        at.draw.go.set()
        await outcomes([asyncio.create_task(ask(at.ranks, rank, left)) for rank, left in ((0, None), (1, 7.0))])
        await outcomes([asyncio.create_task(ask(at.ranks, rank, None, step=1)) for rank in (0, 1)])
        assert at.draw.remaining == [pytest.approx(7.0, abs=0.5), None]

    life(body)


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_rank_that_goes_away_during_the_draw_refuses_all(life, leaving):
    async def body(at):
        asking = await drawing(at)
        asking[leaving].cancel()
        refused((await outcomes(asking))[1 - leaving :: 2], f"rank {leaving} went away")
        assert at.draw.cancelled == 1
        assert forgotten(at)

    life(body)


def test_a_rank_that_asks_again_during_the_draw_refuses_all(life):
    async def body(at):
        asking = await drawing(at)
        asking.append(asyncio.create_task(ask(at.ranks, 1)))
        refused(await outcomes(asking), "rank 1 asked again while the draw ran")

    life(body)


@pytest.mark.parametrize("error", [NotPossible("x", 1, "y"), ZeroDivisionError()])
def test_a_draw_that_fails_fails_for_all_and_for_those_who_ask_again(life, error):
    async def body(at):
        at.draw.error = error
        asking = await drawing(at)
        at.draw.go.set()
        answers = await outcomes(asking)
        answers += await outcomes([asyncio.create_task(ask(at.ranks, 0))])
        kinds = {type(answer) for answer in answers}
        assert kinds == {NotPossible if isinstance(error, NotPossible) else RuntimeError}
        assert len(set(map(id, answers))) == 3, "every rank has an error of its own"

    life(body)


def test_a_rank_whose_block_fails_unforeseen_keeps_its_message_to_itself(life):
    async def body(at):
        waiting = asyncio.create_task(ask(at.ranks, 0))
        await asyncio.sleep(0.05)
        with pytest.raises(ZeroDivisionError), at.ranks.entered(request_of(1)):
            raise ZeroDivisionError("secret")
        answers = await outcomes([waiting])
        refused(answers, "rank 1 met an internal error")
        assert "secret" not in str(answers[0])

    life(body)


def test_what_is_joined_counts_as_bytes_under_way(life):
    async def body(at):
        at.draw.go.set()
        with at.admission.admit(BYTES - 80):
            first, second = await outcomes([asyncio.create_task(ask(at.ranks, rank)) for rank in (0, 1)])
            assert first.indices.tolist() == second.indices.tolist() == [0, 1], "2 x 10 x 4 bytes fit"
        with at.admission.admit(BYTES - 79):
            answers = await outcomes([asyncio.create_task(ask(at.ranks, rank, step=1)) for rank in (0, 1)])
            assert [type(answer) for answer in answers] == [Overloaded] * 2

    life(body)


def test_the_only_rank_that_is_ready_is_replaced_and_its_successor_takes_its_time(life):
    async def body(at):
        older = asyncio.create_task(ask(at.ranks, 0))
        await asyncio.sleep(0.05)
        request = request_of(0)
        with at.ranks.entered(request) as run:
            refused(await outcomes([older]), "took this one's place")
            await asyncio.sleep(0.1)  # nobody is ready now
            asking = [asyncio.create_task(run(prepared(0), request)), asyncio.create_task(ask(at.ranks, 1))]
            at.draw.go.set()
            assert [answer.indices.tolist() for answer in await outcomes(asking)] == [[0, 1]] * 2

    life(body)


def test_a_drain_ends_the_wait_for_ranks(life):
    async def body(at):
        waiting = asyncio.create_task(ask(at.ranks, 0))
        await asyncio.sleep(0.05)
        at.admission.close()
        [answer] = await outcomes([waiting])
        assert isinstance(answer, Draining)
        assert str(answer) == "server is draining; it waits for no ranks any more; try another one"
        assert forgotten(at)

    life(body)


def test_refusals_are_forgotten_in_time_and_in_number(life, monkeypatch):
    async def body(at):
        at.draw.go.set()
        monkeypatch.setattr(module, "REMEMBERED", 2)
        for step in range(3):
            asking = [asyncio.create_task(ask(at.ranks, rank, step=step, gain=1.0 + rank)) for rank in (0, 1)]
            answers = await outcomes(asking)
            assert [type(answer) for answer in answers] == [InvalidRequest] * 2
            assert "gain is 1.0 on rank 0 and 2.0 on rank 1" in str(answers[0])
        assert [step for _, step in at.ranks._refused] == [1, 2]
        [answer] = await outcomes([asyncio.create_task(ask(at.ranks, 0, step=2))])
        assert isinstance(answer, InvalidRequest)
        monkeypatch.setattr(module, "REMEMBERED_SECONDS", 0.0)
        asking = [asyncio.create_task(ask(at.ranks, rank, step=2)) for rank in (0, 1)]
        assert [answer.indices.tolist() for answer in await outcomes(asking)] == [[0, 1]] * 2

    life(body)


def test_a_refusal_lists_a_few_of_many_missing_ranks(life):
    async def body(at):
        [answer] = await outcomes([asyncio.create_task(ask(at.ranks, 3, world=64))])
        assert "rank 0, 1, 2, 4, 5, 6, 7, 8, … did not come within 0.1 s" in str(answer)
        assert forgotten(at)

    life(body, seconds=0.1)
