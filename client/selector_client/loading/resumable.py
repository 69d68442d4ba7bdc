"""A stream of super-batches, and the positions in it from which it can go on."""

import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

log = logging.getLogger(__name__)

_END = object()


@dataclass(frozen=True)
class Position:
    """The position after `drawn` super-batches of an iteration. `state` is what the super-batches' own state_dict says
    of it, or None if they have none. `digest` tells the super-batch before it from others, or is empty."""

    drawn: int = 0
    state: Any = None
    digest: str = ""


class ResumableStream:
    """Super-batches from any iterable, from any position on. If the iterable has `state_dict` and `load_state_dict`, it
    goes back to a position by these, and otherwise the stream draws and leaves out what came before.

    A thread may still be drawing for an iteration that was left. The iterations take turns, and the old one ends with
    the draw that is under way.
    """

    def __init__(self, super_batches: Iterable[Any]) -> None:
        self.__setstate__(super_batches)

    def __getstate__(self) -> Any:
        return self._super_batches

    def __setstate__(self, super_batches: Iterable[Any]) -> None:
        self._super_batches: Any = super_batches
        self._lock = threading.Lock()
        self._turn = 0
        self._stateful = hasattr(super_batches, "load_state_dict") and hasattr(super_batches, "state_dict")
        self._beginning: Any = None  # the state before the first draw
        self._resting: Position | None = None  # where the iterable ended by itself, if it was not touched since
        self._loaded = b""  # the state after the first draw that followed a loaded one

    def __len__(self) -> int:
        return len(self._super_batches)

    @property
    def source(self) -> Any:
        """The iterable itself."""
        return self._super_batches

    def here(self, drawn: int = 0) -> Position:
        """Returns the present position, after `drawn` super-batches."""
        state = self._state()
        if self._beginning is None:
            self._beginning = state
        return Position(drawn, state)

    def rest(self) -> Position:
        """Returns the position after an iteration that has ended. The next one begins anew by itself."""
        self._resting = self.here()
        return self._resting

    def go_to(self, position: Position) -> None:
        """Goes to a position that has a state. Raises what the iterable raises about a state that cannot be its own,
        and ValueError if it keeps no state."""
        self._resting = None
        if position.state is None:
            return
        if not self._stateful:
            raise ValueError("state: source is set; these super_batches have no load_state_dict")
        # Loaders that have workers start them to tell their state, and need no other way to begin anew.
        if self._beginning is None and not getattr(self._super_batches, "num_workers", 0):
            self._beginning = self._state()
        self._super_batches.load_state_dict(position.state)

    def after(self, position: Position, check: Callable[[Any], object] | None = None) -> Iterator[tuple[Any, Position]]:
        """Yields the super-batches that follow, each with the position after it: the rest of an epoch, or the next
        epoch where nothing is left of this one. Ends when another iteration begins. `check` is given the super-batch
        before the position, if it has to be drawn again to come there."""
        with self._lock:
            self._turn += 1
            turn, rested = self._turn, self._resting is not None and position is self._resting
            self._resting = None
        for begin, leave_out in self._ways(position, rested):
            drawn = leave_out
            with self._lock:
                if turn != self._turn:
                    return
                begin()
                super_batches = iter(self._super_batches)
                last = next(islice(super_batches, leave_out - 1, leave_out), _END) if leave_out else _END
            if last is not _END and check is not None:
                check(last)
            while (found := self._draw(super_batches, turn, drawn + 1)) is not None:
                if drawn == leave_out and self._begins_where_loaded(found[1], loads=begin is not _nothing):
                    break
                drawn += 1
                yield found
            if drawn > leave_out or turn != self._turn:
                return

    def _ways(self, position: Position, rested: bool) -> Iterator[tuple[Callable[[], object], int]]:
        """Yields what to do before an iteration, and how many super-batches to leave out of it. Where nothing follows
        one way, the epoch has ended, and the next way is tried to begin anew: some iterables do so by themselves, and
        others go on ending until they are given the state of their beginning."""
        if position.state is not None and not rested:
            yield partial(self.go_to, position), 0
        elif position.drawn and position.state is None:
            yield _nothing, position.drawn
        yield _nothing, 0
        if self._beginning is not None:
            yield partial(self.go_to, Position(state=self._beginning)), 0

    def _begins_where_loaded(self, after: Position, loads: bool) -> bool:
        """Whether an iteration that should begin anew has begun where a state was once loaded, as those of Hugging Face
        datasets do."""
        if after.state is None:
            return False
        try:
            state = pickle.dumps(after.state)
        except Exception:  # whatever a foreign object raises; then nobody can tell
            return False
        if loads:
            self._loaded = state
            return False
        return self._beginning is not None and state == self._loaded

    def _draw(self, super_batches: Iterator[Any], turn: int, drawn: int) -> tuple[Any, Position] | None:
        with self._lock:
            if turn != self._turn or (found := next(super_batches, _END)) is _END:
                return None
            return found, self.here(drawn)

    def _state(self) -> Any:
        if not self._stateful:
            return None
        try:
            return self._super_batches.state_dict()
        except TypeError as error:  # one that must be told where it is, such as the datasets of mosaicml streaming
            self._stateful = False
            log.warning("the super-batches' state_dict() cannot be used, so they are drawn again to resume: %s", error)
            return None


def _nothing() -> None:
    """Is what there is to do before an iteration that begins by itself."""
