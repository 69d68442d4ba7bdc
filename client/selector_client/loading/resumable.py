"""Super-batches, and places in them from which one can go on."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

_END = object()


@dataclass(frozen=True)
class Place:
    """After `drawn` super-batches of an iteration. `state` is what they say of it themselves, None if they cannot."""

    drawn: int = 0
    state: Any = None


class Source:
    """An iterable of super-batches. With `state_dict` and `load_state_dict` of its own it goes back to a place by
    these, otherwise by drawing and leaving out what came before it.

    A thread may still be drawing for an iteration that was left: they take turns, and it ends with its draw.
    """

    def __init__(self, super_batches: Iterable[Any]) -> None:
        self._super_batches = super_batches
        self._lock = threading.Lock()
        self._turn = 0

    def __getstate__(self) -> Iterable[Any]:
        return self._super_batches

    def __setstate__(self, super_batches: Iterable[Any]) -> None:
        Source.__init__(self, super_batches)

    def __len__(self) -> int:
        return len(self._super_batches)  # type: ignore[arg-type]

    @property
    def resumable(self) -> bool:
        """Whether it can go back by itself."""
        return hasattr(self._super_batches, "load_state_dict") and hasattr(self._super_batches, "state_dict")

    def here(self, drawn: int = 0) -> Place:
        """Where it stands."""
        return Place(drawn, self._super_batches.state_dict() if self.resumable else None)  # type: ignore[attr-defined]

    def go_to(self, place: Place) -> None:
        """Raises what the super-batches raise about a state that cannot be theirs, ValueError if they keep none."""
        if place.state is None:
            return
        if not self.resumable:
            raise ValueError("state: source is set; these super_batches have no load_state_dict")
        self._super_batches.load_state_dict(place.state)  # type: ignore[attr-defined]

    def after(self, place: Place) -> Iterator[tuple[Any, Place]]:
        """What follows, each with the place after it: the rest of an epoch, or where nothing is left of it the next.
        Ends when another iteration begins."""
        with self._lock:
            self._turn += 1
            turn = self._turn
            self.go_to(place)
        leave_out = place.drawn if place.state is None else 0
        for first in (leave_out, 0):
            drawn = first
            with self._lock:
                super_batches = iter(self._super_batches)
                next(islice(super_batches, first, first), None)
            while (found := self._draw(super_batches, turn, drawn + 1)) is not None:
                drawn += 1
                yield found
            if drawn > first or not place.drawn or turn != self._turn:
                return

    def _draw(self, super_batches: Iterator[Any], turn: int, drawn: int) -> tuple[Any, Place] | None:
        with self._lock:
            if turn != self._turn or (found := next(super_batches, _END)) is _END:
                return None
            return found, self.here(drawn)
