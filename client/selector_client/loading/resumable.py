"""A stream of super-batches, and the positions in it from which it can go on."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

_END = object()


@dataclass(frozen=True)
class Position:
    """The position after `drawn` super-batches of an iteration. `state` is what the super-batches' own state_dict says
    of it, or None if they have none."""

    drawn: int = 0
    state: Any = None


class ResumableStream:
    """Super-batches from any iterable, from any position on. If the iterable has `state_dict` and `load_state_dict`, it
    goes back to a position by these, and otherwise the stream draws and leaves out what came before.

    A thread may still be drawing for an iteration that was left. The iterations take turns, and the old one ends with
    the draw that is under way.
    """

    def __init__(self, super_batches: Iterable[Any]) -> None:
        self._super_batches = super_batches
        self._lock = threading.Lock()
        self._turn = 0

    def __getstate__(self) -> Iterable[Any]:
        return self._super_batches

    def __setstate__(self, super_batches: Iterable[Any]) -> None:
        self._super_batches = super_batches
        self._lock = threading.Lock()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._super_batches)  # type: ignore[arg-type]

    @property
    def resumable(self) -> bool:
        """Whether the iterable can go back by itself."""
        return hasattr(self._super_batches, "load_state_dict") and hasattr(self._super_batches, "state_dict")

    def here(self, drawn: int = 0) -> Position:
        """Returns the present position, after `drawn` super-batches."""
        return Position(drawn, self._super_batches.state_dict() if self.resumable else None)  # type: ignore[attr-defined]

    def go_to(self, position: Position) -> None:
        """Goes to a position that has a state. Raises what the iterable raises about a state that cannot be its own,
        and ValueError if it keeps no state."""
        if position.state is None:
            return
        if not self.resumable:
            raise ValueError("state: source is set; these super_batches have no load_state_dict")
        self._super_batches.load_state_dict(position.state)  # type: ignore[attr-defined]

    def after(self, position: Position) -> Iterator[tuple[Any, Position]]:
        """Yields the super-batches that follow, each with the position after it: the rest of an epoch, or the next
        epoch where nothing is left of this one. Ends when another iteration begins."""
        with self._lock:
            self._turn += 1
            turn = self._turn
            self.go_to(position)
        leave_out = position.drawn if position.state is None else 0
        for first in (leave_out, 0):
            drawn = first
            with self._lock:
                super_batches = iter(self._super_batches)
                next(islice(super_batches, first, first), None)
            while (found := self._draw(super_batches, turn, drawn + 1)) is not None:
                drawn += 1
                yield found
            if drawn > first or not position.drawn or turn != self._turn:
                return

    def _draw(self, super_batches: Iterator[Any], turn: int, drawn: int) -> tuple[Any, Position] | None:
        with self._lock:
            if turn != self._turn or (found := next(super_batches, _END)) is _END:
                return None
            return found, self.here(drawn)
