"""All ranks come to this sidecar and select as one. This runs on the event loop, beside the worker and its queue.

A party is the ranks of one group at one step. It ends in one way for all of them: each gets its share of one result,
or all are refused for one reason, at once; then a rank that comes too late is refused for it too.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from selector_server.engine.admission import Admission
from selector_server.engine.candidates.base import Scorable
from selector_server.engine.dispatcher import TICK_SECONDS, Dispatcher, reach
from selector_server.engine.ranks.base import Run, losing
from selector_server.engine.ranks.joining import check_alike, join, joined_bytes, listed, rank_settings, share
from selector_server.engine.request import Request
from selector_server.engine.task import Member, Result, Task
from selector_server.errors import Draining, GroupFailed, InvalidRequest, SelectorError
from selector_server.telemetry import tracing

log = logging.getLogger(__name__)

# So many refused parties are remembered, and that long.
REMEMBERED_SECONDS = 60.0
REMEMBERED = 1024


@dataclass(eq=False)
class _Seat:
    """One rank's request. What is None stays so until the rank has joined."""

    rank: int
    task: Task[Scorable] | None = None
    request: Request | None = None
    future: asyncio.Future[Result] | None = None
    joined: float = 0.0  # time.monotonic(), as is `until`
    until: float = float("inf")  # when waiting must end, so that all hear of it in time

    def settle(self, outcome: Result | Exception) -> None:
        if self.future is None or self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(eq=False)
class _Party:
    key: tuple[str, int]
    world_size: int
    seats: dict[int, _Seat] = field(default_factory=dict)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    error: Exception | None = None

    @property
    def joined(self) -> list[_Seat]:
        """The seats that have joined, in the order of ranks."""
        return [seat for _, seat in sorted(self.seats.items()) if seat.task is not None]

    def failed(self, limit: str) -> GroupFailed:
        group, step = self.key
        return GroupFailed("group", repr(group), f"step {step} of its {self.world_size} ranks failed: {limit}")


class OneSidecar:
    """All ranks come to this sidecar. A party waits `seconds` for its ranks, from the first one that is ready."""

    def __init__(self, dispatcher: Dispatcher, admission: Admission, seconds: float) -> None:
        self._dispatcher, self._admission, self._seconds = dispatcher, admission, seconds
        self._parties: dict[tuple[str, int], _Party] = {}
        self._refused: dict[tuple[str, int], tuple[float, Exception]] = {}

    def start(self) -> None:
        """There is nobody to connect with."""

    def stop(self) -> None:
        """There is nobody to leave."""

    @contextmanager
    def entered(self, request: Request) -> Iterator[Run]:
        if request.member is None:
            yield self._dispatcher.select
            return
        party, seat = self._enter(request.member)
        with losing(lambda why: self._lose(party, seat, why)):
            yield lambda task, request: self._join(party, seat, task, request)

    def _enter(self, member: Member) -> tuple[_Party, _Seat]:
        key = (member.group, member.step)
        when, error = self._refused.get(key, (0.0, None))
        if error is not None and time.monotonic() - when < REMEMBERED_SECONDS:
            raise _again(error)
        party = self._parties.setdefault(key, _Party(key, member.world_size))
        if party.world_size != member.world_size:
            values = f"{party.world_size} on rank {min(party.seats)} and {member.world_size} on rank {member.rank}"
            self._stop(party, InvalidRequest("world_size", values, "must be the same for all ranks of a group"))
        elif party.full.is_set():
            self._stop(party, party.failed(f"rank {member.rank} asked again while the draw ran"))
        if party.error is not None:
            raise _again(party.error)
        seat = _Seat(member.rank)
        if (older := party.seats.get(member.rank)) is not None:
            older.settle(party.failed(f"a newer request of rank {member.rank} took this one's place"))
        party.seats[member.rank] = seat
        return party, seat

    async def _join(self, party: _Party, seat: _Seat, task: Task[Scorable], request: Request) -> Result:
        if party.error is not None:
            raise _again(party.error)
        if party.seats[seat.rank] is not seat:
            raise party.failed(f"a newer request of rank {seat.rank} took this one's place")
        if (first := next(iter(party.joined), None)) is not None and first.task is not None:
            try:
                check_alike(rank_settings(first.rank, first.task), rank_settings(seat.rank, task))
            except InvalidRequest as error:
                self._stop(party, error)
                raise
        request.enter("queue")
        seat.task, seat.request, seat.joined = task, request, time.monotonic()
        seat.until = seat.joined + reach(request.remaining())
        seat.future = asyncio.get_running_loop().create_future()
        if len(party.joined) == party.world_size:
            party.full.set()
        if party.life is None:
            party.life = asyncio.create_task(self._live(party))
        with tracing.stage("group"):
            return await seat.future

    async def _live(self, party: _Party) -> None:
        """Leads the party from the first rank that is ready to the end."""
        try:
            await self._gather(party)
            seats = party.joined
            tasks = [seat.task for seat in seats if seat.task is not None]
            requests = [seat.request for seat in seats if seat.request is not None]
            for seat, request in zip(seats, requests, strict=True):
                request.spent("group", time.monotonic() - seat.joined)
            result = await self._run(tasks, requests)
            shares = [share(result, task, seat.rank) for task, seat in zip(tasks, seats, strict=True)]
        except Exception as error:
            self._refuse(party, error)
            return
        del self._parties[party.key]
        for seat, mine in zip(seats, shares, strict=True):
            seat.settle(mine)

    async def _gather(self, party: _Party) -> None:
        end = time.monotonic() + self._seconds
        while not party.full.is_set():
            if self._admission.closed and len(party.seats) < party.world_size:  # No other will be let in.
                raise Draining("server", "draining", "it waits for no ranks any more; try another one")
            left = min([end, *(seat.until for seat in party.joined)]) - time.monotonic()
            if left <= 0:
                raise self._missing(party, end)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(TICK_SECONDS, left)):
                    await party.full.wait()

    def _missing(self, party: _Party, end: float) -> GroupFailed:
        there = {seat.rank for seat in party.joined}
        names = listed([rank for rank in range(party.world_size) if rank not in there])
        first = end <= min(seat.until for seat in party.joined)
        return party.failed(f"rank {names} did not come " + (f"within {self._seconds:g} s" if first else "in time"))

    async def _run(self, tasks: list[Task[Scorable]], requests: list[Request]) -> Result:
        with Request.joint(requests) as request:
            request.hold(self._admission.enlarge(joined_bytes(tasks)))
            joined = await asyncio.to_thread(join, tasks)
            request.allocated()
            return await self._dispatcher.select(joined, request)

    def _lose(self, party: _Party, seat: _Seat, why: str) -> None:
        """Is called when a rank's request ended; nothing happens if it was replaced, or its party is over."""
        if self._parties.get(party.key) is party and party.seats[seat.rank] is seat:
            self._stop(party, party.failed(f"rank {seat.rank} {why}"))

    def _stop(self, party: _Party, error: Exception) -> None:
        if party.life is not None:
            party.life.cancel()
        self._refuse(party, error)

    def _refuse(self, party: _Party, error: Exception) -> None:
        """Tells all ranks that wait, and those that will come."""
        log.info("group %r, step %d: all ranks are refused: %s", *party.key, error)
        self._parties.pop(party.key, None)
        party.error = _again(error)
        self._refused.pop(party.key, None)
        self._refused[party.key] = (time.monotonic(), party.error)
        while len(self._refused) > REMEMBERED:
            del self._refused[next(iter(self._refused))]
        for seat in party.seats.values():
            seat.settle(_again(error))


def _again(error: Exception) -> Exception:
    """The same error for another rank, without its traceback, which holds on to a request's arrays."""
    if isinstance(error, SelectorError):
        return error.again()
    return RuntimeError(f"the ranks' selection failed: {error!r}")
