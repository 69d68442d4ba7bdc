"""One iteration of a loader, whose items stand in one queue from the draw until the trainer has used them."""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

from selector_client.loading.loader_state import Picked
from selector_client.loading.resumable import Position


@dataclass
class Item:
    """A super-batch on its way to the trainer, with its picks.

    `picked` may come from a state, or from an iteration that was left; such an item waits for its super-batch, which is
    drawn again, and until then has no `after`. `after` is the position from which the next super-batch follows. `size`
    is how many candidates it has, of which a selector was shown `candidates`: none if it was not asked. `given` says
    that the trainer has the sub-batch. Whether the picks are a fallback, `picked.selection` says, on either way."""

    picked: Picked
    super_batch: Any = None
    after: Position | None = None
    candidates: int = 0
    size: int = 0
    given: bool = False


class Iteration:
    """The items that follow `position`, where the selector had begun `count` selections, in one queue: first those that
    the trainer was given and has not used, then those that are ready, then those whose super-batch is not drawn yet.

    The loader's lock guards it. `begun` is False until somebody iterates. `batches` yields the items with their
    sub-batches, and is None when it has ended."""

    def __init__(self, position: Position, count: int, kept: Iterable[Picked] = (), *, begun: bool = True) -> None:
        self.position, self.count, self.begun = position, count, begun
        self.ended = False
        self.items = deque(Item(picked) for picked in kept)
        self.batches: Generator[tuple[Item, Any], None, None] | None = None

    def end(self) -> None:
        """Ends its threads, after what they are doing. None of them begins another selection."""
        self.ended = True
        if self.batches is not None:
            self.batches.close()
        self.batches = None

    @property
    def given(self) -> list[Item]:
        """The items that the trainer was given and has not used."""
        return [item for item in self.items if item.given]

    @property
    def last_count(self) -> int:
        """How many selections the selector had begun once it had begun that of the last item."""
        return self.items[-1].picked.count if self.items else self.count

    def pending(self) -> list[Picked]:
        """Returns all picks that follow `position`, in order."""
        return [item.picked for item in self.items]

    def waiting(self) -> Item | None:
        """Returns the first item that waits for its super-batch."""
        return next((item for item in self.items if item.after is None), None)

    def forget(self) -> None:
        """Drops the items that wait for their super-batches."""
        self.items = deque(item for item in self.items if item.after is not None)

    def drawn(self, super_batch: Any, after: Position) -> Item | None:
        """Gives a super-batch to the first item that waits for one, and returns that item, or None if no item waits."""
        if (item := self.waiting()) is not None:
            item.super_batch, item.after = super_batch, after
        return item

    def used(self) -> None:
        """Moves on by the item that the trainer was given first of those it has not used, if there is one."""
        if self.items and self.items[0].given:
            item = self.items.popleft()
            assert item.after is not None
            self.position, self.count = item.after, item.picked.count

    def finish(self, position: Position, count: int) -> None:
        """Makes what follows the last item begin at `position`, with the selection after `count` others."""
        if given := self.given:
            given[-1].after, given[-1].picked = position, replace(given[-1].picked, count=count)
        else:
            self.position, self.count = position, count
