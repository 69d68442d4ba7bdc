"""Feeds a trainer with sub-batches, choosing the next one while the trainer works on the present one."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from selector_client.selection import Selection
from selector_client.selector import Selector

_END = object()


class SelectingLoader:
    """Iterates over `super_batches` and yields, of each, the sub-batch that the sidecar picked, in the same form.

    `view(super_batch)` gives the arguments of `Selector.select` (default: keys "images" and "texts" of a mapping, and
    "ids" if it has them, or the first two of a tuple or list); `take(super_batch, indices)` gives the sub-batch
    (default: indexes every array, tensor and list in it). `prefetch` is how many selections may be ready or under way
    ahead of the trainer; 0 selects while the trainer waits. `first_step` is the trainer step of the first sub-batch.

    `last` is the Selection behind the sub-batch yielded last; `wait_seconds` is how long the trainer waited so far.
    """

    def __init__(
        self,
        super_batches: Iterable[Any],
        selector: Selector,
        *,
        view: Callable[[Any], Mapping[str, Any]] | None = None,
        take: Callable[[Any, Any], Any] | None = None,
        prefetch: int = 1,
        first_step: int = 0,
    ) -> None:
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}; must be 0 or more")
        self._super_batches, self._selector = super_batches, selector
        self._view, self._take = view or default_view, take or default_take
        self._prefetch, self._step = prefetch, first_step
        self.last: Selection | None = None
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = self._ahead() if self._prefetch else self._selected()
        while True:
            started = time.perf_counter()
            item = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if item is None:
                return
            batch, self.last = item
            yield batch

    def _selected(self) -> Iterator[tuple[Any, Selection]]:
        for super_batch in self._super_batches:
            selection = self._selector.select(**self._view(super_batch), step=self._step)
            self._step += 1  # goes on over epochs
            yield self._take(super_batch, selection.indices), selection

    def _ahead(self) -> Iterator[tuple[Any, Selection]]:
        """The same, from a thread that may be `prefetch` selections ahead."""
        done: SimpleQueue[Any] = SimpleQueue()
        room = threading.Semaphore(self._prefetch)
        stop = threading.Event()

        def work() -> None:
            try:
                room.acquire()
                for item in self._selected():
                    if stop.is_set():
                        return
                    done.put(item)
                    room.acquire()
                    if stop.is_set():
                        return
                done.put(_END)
            except BaseException as error:  # whatever the user's iterable raises belongs to the trainer's thread
                done.put(error)

        threading.Thread(target=work, name="selecting-loader", daemon=True).start()
        try:
            while (item := done.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                room.release()
                yield item
        finally:
            stop.set()
            room.release()


def default_view(super_batch: Any) -> Mapping[str, Any]:
    """images, texts and perhaps ids of a mapping, or the first two entries of a tuple or list."""
    match super_batch:
        case {"images": images, "texts": texts, "ids": ids}:
            return {"images": images, "texts": texts, "ids": ids}
        case {"images": images, "texts": texts}:
            return {"images": images, "texts": texts}
        case (images, texts, *_):
            return {"images": images, "texts": texts}
    raise TypeError(f"cannot find images and texts in a {type(super_batch).__name__}; give SelectingLoader a view")


def default_take(super_batch: Any, indices: Any) -> Any:
    """The rows `indices` of everything in a mapping, tuple or list; a list inside those has one entry per row."""
    if isinstance(super_batch, list):  # what torch's DataLoader makes of pairs
        return [_rows(part, indices) for part in super_batch]
    return _rows(super_batch, indices)


def _rows(part: Any, indices: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: _rows(value, indices) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_rows(value, indices) for value in part)
    if isinstance(part, Sequence):
        return [part[i] for i in indices]
    return part[indices]
