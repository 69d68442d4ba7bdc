"""Feeds a trainer with sub-batches, and selects the next one while the trainer works on the present one."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from selector_client.loading.batch_layout import collate, default_take, default_view, with_captions
from selector_client.loading.dataset import IndexView, SampleReader, SuperBatches, batch_size, size_of_last
from selector_client.loading.iteration import Item, Iteration
from selector_client.loading.loader_progress import Progress
from selector_client.loading.loader_state import LoaderState, Picked, process_name
from selector_client.loading.order import Order
from selector_client.loading.picker import Picker, Shown
from selector_client.loading.prefetch import prefetched
from selector_client.loading.reference import Reference, ViewWithReference
from selector_client.loading.resumable import Position, ResumableStream
from selector_client.selecting.selection import Selection

_THREADS = "selecting-loader"


class SelectingLoader:
    """Iterates over `super_batches` and yields, of each, the sub-batch that the sidecar picked, in the same form.

    `view(super_batch)` gives the arguments of `Selector.select` (by default the keys "images" and "texts" of a mapping,
    and "ids" if it has them, or the first two entries of a tuple or list). `take(super_batch, indices)` gives the
    sub-batch (by default it indexes every array, tensor and list in it). `reference` says which reference made the
    embeddings that super-batches have of their samples, and where they are; they are sent along. `prefetch` is how many
    selections may be ready or under way ahead of the trainer: from 2 on, one is made while the picks of the one before
    are taken; at 1 they come one after the other; at 0 they are made while the trainer waits. `first_step` is the
    trainer step of the first sub-batch. `deadline` seconds bound each selection. By default they follow the trainer's
    own step time, within the selector's timeout, which alone counts for ranks that select as one.

    How many are picked of each super-batch follows from `super_batch_size`, the size that it has if nothing is missing
    (default: the `batch_size` of a data loader, or the size of the first super-batch). One that has fewer candidates
    than are to be picked is dropped, counted, and warned of once; with `last="keep"`, fewer are picked of it.

    `last` is the Selection behind the sub-batch yielded last (`last.fallback` says why it is uniform), and `progress`
    counts. `state_dict()` and `load_state_dict()` resume exactly: picks that were received and not yet yielded are
    yielded afterwards without asking again, but ranks that select as one ask again, all of them. `super_batches` with
    those two methods are resumed by them, others by drawing and leaving out what was yielded before. If the order of
    the samples has then changed, so that some come again and others never, there is a warning, and with
    `strict_resume` ValueError.
    """

    def __init__(
        self,
        super_batches: Iterable[Any],
        selector: Any,
        *,
        view: Callable[[Any], Mapping[str, Any]] | None = None,
        take: Callable[[Any, Any], Any] | SampleReader | None = None,
        reference: Reference | None = None,
        prefetch: int = 2,
        first_step: int = 0,
        deadline: float | None = None,
        last: Literal["drop", "keep"] = "drop",
        super_batch_size: int | None = None,
        strict_resume: bool = False,
    ) -> None:
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}; must be 0 or more")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline is {deadline}; must be positive")
        if last not in ("drop", "keep"):
            raise ValueError(f"last is {last!r}; must be 'drop' or 'keep'")
        if reference is not None:
            if isinstance(view, IndexView):
                raise TypeError(
                    "reference is for super_batches that have samples; a view of indices gives embeddings itself"
                )
            view = ViewWithReference(view or default_view, reference)
        self._stream, self._take, self._keep = ResumableStream(super_batches), take, last == "keep"
        self._picker = Picker(
            selector,
            view or default_view,
            prefetch=prefetch,
            deadline=deadline,
            keep_short=self._keep,
            nominal=super_batch_size,
            guess=batch_size(super_batches),
        )
        self._order = Order(strict_resume)
        self._prefetch, self._first_step = prefetch, first_step
        self.last: Selection | None = None
        self.progress = Progress()
        self._dropped = 0  # super-batches of the last whole epoch
        self._told = False  # whether the trainer says when it has used a sub-batch
        self._lock = threading.Lock()
        self._iteration = Iteration(Position(), self._picker.count, begun=False)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            now = self._iteration
            resting = Iteration(now.position, now.count, self._ahead(now), begun=False)
        return {name: value for name, value in vars(self).items() if name != "_lock"} | {"_iteration": resting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        # The selector was copied after the iteration, and other threads may have selected in between.
        self._picker.resume(self._iteration.last_count, None, None)

    @classmethod
    def over(
        cls,
        dataset: Any,
        selector: Any,
        *,
        super_batch_size: int,
        view: Callable[[Any], Mapping[str, Any]],
        ids: Callable[[Any], Any] | None = None,
        collate: Callable[[Sequence[Any]], Any] = collate,
        workers: int = 4,
        seed: int = 0,
        shuffle: bool = True,
        **options: Any,
    ) -> "SelectingLoader":
        """Makes a loader over a map-style dataset (`len(dataset)`, `dataset[i]`). It draws B indices, shows the sidecar
        `view(indices)`, which is low-resolution images and texts in the form of `Selector.select`'s arguments, and
        calls `dataset[i]`, in `workers` threads, for the picks only. Samples are named by `ids(indices)`, or else by
        the view's "ids", or else by their indices. With the selector's setting prefilter, the sidecar is first asked by
        those of `ids`, or by indices, which candidates go on, and the view is called for these only; then its own ids,
        if it has any, must be the same."""
        super_batches = SuperBatches(len(dataset), super_batch_size, seed=seed, shuffle=shuffle)
        take = SampleReader(dataset, collate, workers)
        options["super_batch_size"] = super_batch_size
        return cls(super_batches, selector, view=IndexView(view, ids), take=take, **options)

    @property
    def wait_seconds(self) -> float:
        """How many seconds the trainer waited so far."""
        return self.progress.wait_seconds

    def __len__(self) -> int:
        """How many sub-batches an epoch has. Those that are dropped do not count, as far as that is known: the last
        super-batch of a data loader is, and what was dropped in the epoch before."""
        whole, picks = len(self._stream), self._picker.picks
        last = size_of_last(self._stream.source)
        if self._keep or picks is None:
            return whole
        return whole - (self._dropped if last is None else int(last < picks))

    def __iter__(self) -> Iterator[Any]:
        iteration, batches = self._begin()
        found = self._next(iteration, batches)
        if found is None and self._picker.joint:  # nothing was left of the iteration before
            iteration, batches = self._begin()
            found = self._next(iteration, batches)
        try:
            while found is not None:
                started = time.perf_counter()
                yield found[0]
                seconds = time.perf_counter() - started
                self._picker.took(seconds)
                self.progress.step_seconds += seconds
                found = self._next(iteration, batches)
        finally:
            if not self._picker.joint:
                iteration.end()

    def _next(self, iteration: Iteration, batches: Iterator[tuple[Item, Any]]) -> tuple[Any] | None:
        """Returns the next sub-batch, if there is one."""
        started = time.perf_counter()
        found = next(batches, None)
        self.progress.wait_seconds += time.perf_counter() - started
        if found is None:
            self._end(iteration)
            return None
        item, batch = found
        with self._lock:
            item.given = True
            if not self._told:
                iteration.used()
        self.last = item.picked.selection
        self.progress.add(item.picked.selection, item.candidates)
        return (batch,)

    def tell_used(self) -> None:
        """Announces that `used` is called for every sub-batch from now on. Trainers need it that fetch the next
        sub-batch before they train on the present one: a state then begins after the last one that was used, and not
        after the last one yielded."""
        self._told = True

    def used(self) -> None:
        """Says that the trainer is done with the sub-batch that was yielded first of those it was not done with."""
        with self._lock:
            self._iteration.used()

    def close(self) -> None:
        """Ends the loader's threads. Ranks that select as one need it: their threads outlive an iteration that is left,
        for the next one goes on with what they have asked for."""
        with self._lock:
            iteration = self._iteration
        iteration.end()

    def state_dict(self) -> dict[str, Any]:
        """Returns what was yielded, and the picks that were made ahead, as plain numbers, lists and texts."""
        with self._lock:
            now, picker = self._iteration, self._picker
            steps = self.progress.steps - len(now.given)
            return LoaderState(steps, now.position, picker.picks, picker.seed, now.count, self._ahead(now)).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration, which must not have begun, go on from there. Raises ValueError, and changes nothing
        then, if it cannot be the state of such a loader. If another rank saved the state, its seed and its picks are
        that rank's own: only the position counts, and the next super-batches are asked for anew."""
        loaded = LoaderState.from_dict(state)
        self._stream.go_to(loaded.position)
        own = loaded.process == process_name()
        kept = loaded.ahead if own and not self._picker.joint else []
        self.progress.steps = loaded.steps
        resting = Iteration(loaded.position, loaded.count, kept, begun=False)
        self._picker.resume(resting.last_count, loaded.seed if own else None, loaded.picks)
        self.close()
        with self._lock:
            self._iteration = resting

    def _begin(self) -> tuple[Iteration, Iterator[tuple[Item, Any]]]:
        """Begins an iteration. If one was left before, super-batches that can go back to what was not yielded do so,
        and its picks stay; others begin as they like. Ranks that select as one go on with the iteration that was left,
        for what its threads have asked for, the threads of other ranks have asked for too."""
        with self._lock:
            before = self._iteration
            given = before.given
            self.progress.steps -= len(given)
            if self._picker.joint and before.batches is not None:
                for item in given:
                    item.given = False
                return before, chain(self._taken(item for item in given), before.batches)
            position, kept = before.position, self._ahead(before)
            if before.begun and position.state is None:
                position, kept = Position(), []
            here = self._stream.here() if position == Position() else position
            iteration = self._iteration = Iteration(here, self._picker.count, kept)
        # From two on, a thread of its own selects while another one takes the picks of the selection before.
        selected = prefetched(self._selected(iteration, position), max(0, self._prefetch - 1), _THREADS)
        iteration.batches = prefetched(self._taken(selected), min(1, self._prefetch), _THREADS)
        return iteration, iteration.batches

    def _ahead(self, iteration: Iteration) -> list[Picked]:
        """Returns the picks that a state keeps. Ranks that select as one keep none: each rank is ahead as far as its
        threads are, and what all must ask alike begins where their trainers are."""
        return [] if self._picker.joint else iteration.pending()

    def _end(self, iteration: Iteration) -> None:
        """Ends an iteration whose last sub-batch was given: what follows is a new beginning."""
        with self._lock:
            iteration.end()
            if self._iteration is iteration:
                iteration.finish(self._stream.rest(), self._picker.count)

    def _taken(self, selected: Generator[Item, None, None]) -> Generator[tuple[Item, Any], None, None]:
        """Yields each item with its sub-batch."""
        with closing(selected):
            for item in selected:
                yield item, self._sub_batch(item)

    def _sub_batch(self, item: Item) -> Any:
        picks, captions = item.picked.selection.indices, item.picked.selection.captions
        numbers = {} if captions is None else dict(zip(picks.tolist(), captions.tolist(), strict=True))
        if isinstance(self._take, SampleReader):
            return self._take(item.super_batch, picks, numbers)
        super_batch = with_captions(item.super_batch, numbers) if numbers else item.super_batch
        return default_take(super_batch, picks, item.size) if self._take is None else self._take(super_batch, picks)

    def _selected(self, iteration: Iteration, start: Position) -> Generator[Item, None, None]:
        """Draws super-batches and yields them with their picks, which are asked for unless the iteration has kept
        them."""
        step = self._first_step + self.progress.steps  # goes on over epochs
        dropped, since = 0, 0  # in this iteration, and since the last sub-batch
        for super_batch, after in self._stream.after(start, partial(self._check, start.digest)):
            with self._lock:
                waiting = iteration.waiting()
            if waiting is not None and since < waiting.picked.dropped:
                dropped, since = dropped + 1, since + 1
                continue
            shown = self._picker.look(super_batch)
            item = self._kept(iteration, super_batch, after, shown)
            if item is None:
                if iteration.ended:
                    return
                if (selection := self._picker.pick(shown, step)) is None:
                    dropped, since = dropped + 1, since + 1
                    self.progress.drop(shown.size, self._picker.picks)
                    continue
                picked = Picked(selection, self._picker.count, since, shown.digest)
                item = Item(picked, super_batch, replace(after, digest=shown.digest), shown.size, shown.size)
                with self._lock:
                    iteration.items.append(item)
            step, since = step + 1, 0
            yield item
        self._dropped = dropped

    def _check(self, digest: str, super_batch: Any) -> None:
        """Looks whether the last super-batch that is left out is the one that it was."""
        if digest:
            self._order.same(digest, self._picker.look(super_batch).digest)

    def _kept(self, iteration: Iteration, super_batch: Any, after: Position, shown: Shown) -> Item | None:
        """Returns the item whose picks were kept for this super-batch, if there is one. Picks that were made of another
        super-batch are forgotten."""
        with self._lock:
            if (waiting := iteration.waiting()) is None:
                return None
            if self._order.same(waiting.picked.digest, shown.digest):
                item = iteration.drawn(super_batch, replace(after, digest=shown.digest))
                assert item is not None
                item.size = shown.size
                return item
            iteration.forget()
            return None
