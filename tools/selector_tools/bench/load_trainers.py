"""Concurrent trainers in an event loop of their own, which send requests made beforehand and check every answer."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from selector_client.selecting.call_errors import status_lost
from selector_client.selecting.candidates import Candidates
from selector_client.selecting.channel import OPTIONS
from selector_client.selecting.settings import Settings
from selector_proto.v1 import selector_pb2 as pb

_SELECT = "/selector.v1.SelectorService/Select"
# This is far more than any answer takes, so a request that ends by it shows as DEADLINE_EXCEEDED.
TIMEOUT_SECONDS = 60.0
# The code of a request that was refused while it was sent, for a reason that grpc.aio loses.
STATUS_LOST = "STATUS_LOST"

Call: TypeAlias = Callable[..., Any]


@dataclass
class Request:
    """One selection as the bytes of its messages, cut as the client cuts them. `expected` are the weights' version and
    the picks that a server without load answered."""

    messages: list[bytes]
    candidates: int
    picks: int
    expected: tuple[int, list[int]] | None = None

    @classmethod
    def of(cls, candidates: Candidates, seed: int) -> "Request":
        """Returns a request with the client's default settings and this seed."""
        settings = Settings()
        header = settings.header()
        header.seed = seed
        messages = [message.SerializeToString() for message in candidates.messages(header)]
        return cls(messages, candidates.size, settings.picks(candidates.size))

    def stream(self) -> list[bytes]:
        """Returns its messages under a new request id, which is appended: protobuf merges parts of a message that come
        twice."""
        named = pb.SelectRequest(selection=pb.Selection(request_id=secrets.token_hex(16)))
        return [self.messages[0] + named.SerializeToString(), *self.messages[1:]]

    def learn(self, reply: pb.SelectResponse) -> None:
        """Makes this the expected answer. Raises RuntimeError if it cannot be right."""
        picks = list(reply.indices)
        if not len(picks) == len(set(picks)) == self.picks or max(picks) >= self.candidates:
            raise RuntimeError(f"the sidecar picked {picks}, which are not {self.picks} different of {self.candidates}")
        self.expected = (reply.weights.version, picks)

    def answered_by(self, reply: pb.SelectResponse) -> bool:
        """Tells whether the answer is the expected one, and so of the right size, without repeats and in range."""
        return self.expected == (reply.weights.version, list(reply.indices))


@dataclass(frozen=True)
class Outcome:
    """What came of a request. Times are those of time.perf_counter(). `late` is how many seconds after it was due it
    was sent, and `code` is the name of a gRPC status, or STATUS_LOST."""

    trainer: int
    due: float
    late: float
    done: float
    code: str
    wrong: bool

    @property
    def seconds(self) -> float:
        return self.done - self.due


class Trainers:
    """Trainers with a channel each; each sends its own requests over and over."""

    def __init__(self, address: str, requests: Sequence[Sequence[Request]]) -> None:
        self._address, self._requests = address, requests
        self._sent = [0] * len(requests)
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="trainers", daemon=True)

    def learn(self) -> None:
        """Sends every request once, one at a time, to a server that does nothing else, and expects those answers."""
        self._start(self._learn()).result()

    def closed(self, in_flight: int, seconds: float) -> Future[list[Outcome]]:
        """Starts a closed loop, in which so many requests are under way at any time, shared among the trainers."""
        return self._start(self._closed(in_flight, seconds))

    def open(self, rate: float, seconds: float) -> Future[list[Outcome]]:
        """Starts an open loop, in which `rate` requests a second are sent at random moments (Poisson), whatever becomes
        of them."""
        return self._start(self._open(rate, seconds))

    def stop(self) -> None:
        """Ends a running loop before its time; it still waits for the requests under way."""
        self._stopped = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        self._stopped = False
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _learn(self) -> None:
        async with self._calls() as calls:
            for call, requests in zip(calls, self._requests, strict=True):
                for request in requests:
                    request.learn(await call(request.stream(), timeout=TIMEOUT_SECONDS))

    async def _closed(self, in_flight: int, seconds: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        end = time.perf_counter() + seconds

        async def again_and_again(trainer: int, call: Call) -> None:
            while time.perf_counter() < end and not self._stopped:
                outcomes.append(await self._one(trainer, call, time.perf_counter()))

        async with self._calls() as calls:
            trainers = [number % len(calls) for number in range(in_flight)]
            await asyncio.gather(*(again_and_again(trainer, calls[trainer]) for trainer in trainers))
        return outcomes

    async def _open(self, rate: float, seconds: float) -> list[Outcome]:
        start = time.perf_counter()
        under_way: list[asyncio.Task[Outcome]] = []

        async def now_and_then(trainer: int, call: Call) -> None:
            moments = random.Random(trainer)  # noqa: S311 - no secret
            due = start
            while not self._stopped:
                due += moments.expovariate(rate / len(self._requests))
                if due >= start + seconds:
                    return
                await asyncio.sleep(due - time.perf_counter())
                under_way.append(asyncio.create_task(self._one(trainer, call, due)))

        async with self._calls() as calls:
            await asyncio.gather(*(now_and_then(trainer, call) for trainer, call in enumerate(calls)))
            return await asyncio.gather(*under_way)

    async def _one(self, trainer: int, call: Call, due: float) -> Outcome:
        requests = self._requests[trainer]
        request = requests[self._sent[trainer] % len(requests)]
        self._sent[trainer] += 1
        sent, wrong, code = time.perf_counter(), False, "OK"
        try:
            wrong = not request.answered_by(await call(request.stream(), timeout=TIMEOUT_SECONDS))
        except grpc.aio.AioRpcError as error:
            code = STATUS_LOST if status_lost(error) else error.code().name
        return Outcome(trainer, due, sent - due, time.perf_counter(), code, wrong)

    @asynccontextmanager
    async def _calls(self) -> AsyncIterator[list[Call]]:
        """Yields for each trainer the method `Select` on a channel of its own, which takes messages as bytes."""
        channels = [grpc.aio.insecure_channel(self._address, options=OPTIONS) for _ in self._requests]
        try:
            yield [channel.stream_unary(_SELECT, None, pb.SelectResponse.FromString) for channel in channels]
        finally:
            for channel in channels:
                await channel.close(None)
