"""Replies that are kept for clients that ask again: which of them go, and when."""

import asyncio
from itertools import count

import pytest
from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.admission import Admission
from selector_server.rpc import idempotency as module
from selector_server.rpc.idempotency import Idempotency
from selector_server.telemetry.metrics import Metrics


@pytest.fixture
def replies():
    return Idempotency(Admission(8, 1 << 20, Metrics()))


def ask(replies, name, size=10, numbers=count()):  # noqa: B008 - one count for all calls
    """What is answered to this id: each answer that is made has a number of its own."""

    async def make():
        return pb.SelectResponse(indices=[next(numbers)], policy="p" * size)

    return replies.once(pb.Selection(request_id=name), 0, make)


def kept(replies, names):
    """Which of these are answered again."""
    return [name for name in names if asyncio.run(ask(replies, name)).repeated]


def test_the_oldest_go_when_there_are_too_many(replies, monkeypatch):
    monkeypatch.setattr(module, "KEPT_REPLIES", 3)
    for name in "abcde":
        asyncio.run(ask(replies, name))
    assert kept(replies, "cde") == ["c", "d", "e"]
    assert kept(replies, "a") == []
    assert kept(replies, "dea") == ["d", "e", "a"], "c went when a was answered anew"


def test_the_oldest_go_when_they_are_too_large(replies, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 2500)
    for name in "abc":
        asyncio.run(ask(replies, name, size=1000))
    assert kept(replies, "bc") == ["b", "c"]
    asyncio.run(ask(replies, "huge", size=3000))
    assert kept(replies, ["huge"]) == []


def test_they_go_after_a_while(replies, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    asyncio.run(ask(replies, "a"))
    now[0] += module.KEPT_SECONDS - 1
    asyncio.run(ask(replies, "b"))
    assert kept(replies, "ab") == ["a", "b"]
    now[0] += 2
    asyncio.run(ask(replies, "c"))
    assert kept(replies, "bc") == ["b", "c"]
    assert kept(replies, "a") == []


def test_what_is_under_way_stays(replies, monkeypatch):
    monkeypatch.setattr(module, "KEPT_REPLIES", 1)

    async def both():
        going_on = asyncio.Event()

        async def slowly():
            await going_on.wait()
            return pb.SelectResponse(policy="slow")

        first = asyncio.create_task(replies.once(pb.Selection(request_id="slow"), 0, slowly))
        await asyncio.sleep(0)
        for name in "abc":
            await ask(replies, name)
        again = asyncio.create_task(replies.once(pb.Selection(request_id="slow"), 0, slowly))
        await asyncio.sleep(0)
        going_on.set()
        return await first, await again

    first, again = asyncio.run(both())
    assert (first.policy, first.repeated, again.policy, again.repeated) == ("slow", False, "slow", True)
