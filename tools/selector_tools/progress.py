"""How far something is that takes long: bars on a terminal, plain lines in a log or a pipe; and how fast it was."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

SizedT = TypeVar("SizedT", bound=Sized)
# A log gets a line so often.
LINE_SECONDS = 10.0


class Advance(Protocol):
    """Says that `more` of the total is done, and that `now` is under way; by default it is what was before."""

    def __call__(self, more: int, now: str | None = ...) -> None: ...


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Shows on stderr how far `what` is; `total` is None where nobody knows it yet."""
    from rich.console import Console  # noqa: PLC0415 - not installed on a trainer

    with bars(Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)

        def advance(more: int, now: str | None = None) -> None:
            progress.update(task, advance=more, description=now)

        yield advance


def counted(what: str, total: int | None, parts: Iterable[SizedT]) -> Iterator[SizedT]:
    """Yields `parts`, and shows meanwhile how many of the `total` entries of all of them are done."""
    with bar(what, total) as advance:
        for part in parts:
            yield part
            advance(len(part))


class OfShards:
    """Tells a bar that counts shards what was done. How many pairs there are nobody knows before."""

    def __init__(self, what: str, advance: Advance) -> None:
        self._what, self._advance, self._pairs, self._began = what, advance, 0, monotonic()

    def pairs(self, more: int) -> None:
        """So many more pairs were seen."""
        self._pairs += more
        rate = self._pairs / max(monotonic() - self._began, 1e-3)
        self._advance(0, f"{self._what}, {self._pairs:,} pairs, {rate:,.0f}/s, shard")

    def shard(self) -> None:
        """One more shard is done."""
        self._advance(1)


@contextmanager
def bar_of_shards(what: str, total: int) -> Iterator[OfShards]:
    """Shows on stderr how many of the `total` shards are done, and how many pairs a second."""
    with bar(what, total) as advance:
        yield OfShards(what, advance)


@contextmanager
def bars(console: "Console") -> Iterator["Progress"]:
    """Yields what shows several bars on `console`. Where that is no terminal, a line on stderr says every ten seconds
    how far the last of them is; what is over sooner is not told."""
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        if console.is_terminal:
            yield progress
            return
        over = Event()
        teller = Thread(target=_tell, args=(progress, over), name="progress", daemon=True)
        teller.start()
        try:
            yield progress
        finally:
            over.set()
            teller.join()


def _tell(progress: "Progress", over: Event) -> None:
    while not over.wait(LINE_SECONDS):
        if progress.tasks and not (last := progress.tasks[-1]).finished:
            print(_line(last), file=sys.stderr, flush=True)


def _line(task: "Task") -> str:
    of = "" if task.total is None else f" of {task.total:,.0f}"
    line = f"{task.description}: {task.completed:,.0f}{of} after {task.elapsed or 0:.0f} s"
    if task.total is None or not task.completed or not task.elapsed:
        return line
    left = (task.total - task.completed) * task.elapsed / task.completed
    return f"{line}, done {_at(left)}"


def _at(seconds: float) -> str:
    """Says when so many seconds from now will be."""
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    return then.strftime("at %H:%M UTC" if seconds < 43_200 else "on %d %B at %H:%M UTC")


def pace(samples: int, seconds: float) -> str:
    """Says how long `samples` samples took, and how many that is in a second."""
    return f"in {seconds:.1f} s ({samples / seconds:,.0f} samples/s)"
