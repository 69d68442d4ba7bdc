"""One request from its first byte to its reply: who waits for it and until when, where it is, and what it holds.

Everything that works for a request is handed this object. Nothing else keeps a request's deadline, its cancellation,
its stage timings or its permits. It may be asked from any thread; its parts are changed by one thread at a time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self, TypeVar

from selector_server.engine.admission import Permit
from selector_server.engine.task import Member, Result, Task
from selector_server.errors import Abandoned, TooLate
from selector_server.telemetry import tracing


@dataclass(frozen=True)
class StageSeconds:
    """The seconds that a request spent in each stage."""

    receive: float = 0.0
    queue: float = 0.0
    cache: float = 0.0
    preprocess: float = 0.0
    encode_learner: float = 0.0
    encode_reference: float = 0.0
    sample: float = 0.0
    wait: float = 0.0
    group: float = 0.0


T = TypeVar("T")
STAGES = tuple(field.name for field in fields(StageSeconds))


class Request:
    """The request of one client, or the joint one of the `ranks` that select as one.

    `stage` says where it is: receive, preprocess, queue (which stands for every wait), encode or sample. `least` tells
    the fewest seconds that it takes from the beginning of a stage to its end, as far as that is known. Leaving the
    request's `with` block gives its permits back.
    """

    def __init__(self, seconds: float | None = None, ranks: Sequence["Request"] = ()) -> None:
        """`seconds` are left until the deadline; None stands for no deadline."""
        self.started = time.perf_counter()
        self.id = ""
        self.member: Member | None = None
        self.payload_bytes = 0
        # Candidates of whatever form: this module stands below those that know the forms.
        self.content: Callable[[], Awaitable[Task[Any]]] = _no_content
        self.least: Callable[[str], float] = lambda _: 0.0
        self.task: Task[Any] | None = None
        self.result: Result | None = None
        self.stage = "receive"
        self.gone = False
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._ranks = ranks
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._permits: list[Permit] = []
        self._held = ExitStack()

    @classmethod
    def joint(cls, ranks: Sequence["Request"]) -> "Request":
        """The request of all these ranks. Its deadline is the earliest of theirs, and what it does is told to them."""
        times = [left for one in ranks if (left := one.remaining()) is not None]
        return cls(min(times, default=None), ranks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)

    async def received(self) -> Task[Any]:
        """Its content, once it is wholly there. The callback is let go: it knows the request, and a circle of the two
        would hold the payload's memory until somebody collects garbage."""
        content, self.content = self.content, _no_content
        self.task = await content()
        return self.task

    # Its deadline, and whether anybody waits for it.

    def remaining(self) -> float | None:
        """Seconds until the deadline, below 0 after it; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def leave(self) -> None:
        """The client went away."""
        self.gone = True

    def enter(self, stage: str) -> None:
        """The request is at this stage from now on."""
        self.stage = stage
        for one in self._ranks:
            one.enter(stage)

    def begin(self, stage: str, at: str) -> None:
        """To be called before the timed `stage`; the request is `at` this place from now on. Raises Abandoned, and
        TooLate if less time is left than this stage and those after it take at least."""
        self.enter(at)
        self.check(self.least(stage))

    def check(self, needed: float = 0.0) -> None:
        """Raises Abandoned if the client went away, and TooLate if fewer seconds than `needed` are left."""
        if self.gone:
            raise Abandoned("request", "abandoned", f"nobody waits for it any more, at {self.stage}")
        left = self.remaining()
        if left is None or left > needed:
            return
        if left <= 0:
            raise TooLate("deadline", f"{-left:.3f} s ago", f"it passed at {self.stage}")
        raise TooLate("deadline", f"{left:.3f} s away", f"from {self.stage} on, at least {needed:.3f} s are needed")

    # How long its stages take.

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds that the block takes to this stage, and a span to the request's trace."""
        started = time.perf_counter()
        with tracing.stage(stage):
            try:
                yield
            finally:
                self.spent(stage, time.perf_counter() - started)

    def spent(self, stage: str, seconds: float) -> None:
        """Adds these seconds to the stage."""
        self._seconds[stage] += seconds
        for one in self._ranks:
            one.spent(stage, seconds)

    @property
    def stages(self) -> StageSeconds:
        """What every stage took so far."""
        return StageSeconds(**self._seconds)

    # What it holds.

    def hold(self, permit: AbstractContextManager[Permit]) -> None:
        """Enters the permit and keeps it until the request's end. Raises what entering it raises."""
        self._permits.append(self._held.enter_context(permit))

    def allocated(self) -> None:
        """All bytes that the permits were given for are allocated by now: the system shows them as used."""
        for permit in self._permits:
            permit.taken()


async def in_thread(work: Callable[[], T], request: Request | None = None) -> T:
    """What `work` returns, called off the event loop. The `request` is told that its client has left when nobody waits
    for it any more; its permits are held until the work has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if request is not None:
            request.leave()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # It is looked at here, for nobody else will.
        raise


async def _no_content() -> Task[Any]:
    raise RuntimeError("the request was not given its content")
