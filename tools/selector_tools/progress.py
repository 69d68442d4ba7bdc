"""A bar on the terminal while something takes long; in a log or a pipe, nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """`more` of the total is done; `now` is under way."""

    def __call__(self, more: int, now: str = ...) -> None: ...


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """`total` is None where nobody knows it yet."""
    from rich.console import Console  # noqa: PLC0415 - not installed on a trainer
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance(more: int, now: str = what) -> None:
            progress.update(task, advance=more, description=now)

        yield advance
