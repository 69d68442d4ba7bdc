"""How far something is that takes long: a bar on the terminal, nothing in a log or a pipe; and how fast it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Says that `more` of the total is done, and that `now` is under way; by default it is what was before."""

    def __call__(self, more: int, now: str | None = ...) -> None: ...


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Shows a bar for `what`; `total` is None where nobody knows it yet."""
    from rich.console import Console  # noqa: PLC0415 - not installed on a trainer
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance(more: int, now: str | None = None) -> None:
            progress.update(task, advance=more, description=now)

        yield advance


def pace(samples: int, seconds: float) -> str:
    """Says how long `samples` samples took, and how many that is in a second."""
    return f"in {seconds:.1f} s ({samples / seconds:,.0f} samples/s)"
