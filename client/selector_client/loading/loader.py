"""Feeds a trainer with sub-batches, choosing the next one while the trainer works on the present one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import median
from typing import Any, Literal

from selector_client.loading.batch_layout import default_take, default_view
from selector_client.loading.dataset import SuperBatches, Taken, collate, with_ids
from selector_client.loading.loader_progress import Progress
from selector_client.loading.loader_state import Picked, State, process_name
from selector_client.loading.prefetch import ahead
from selector_client.loading.resumable import Place, Source
from selector_client.selecting.candidates import TooFew
from selector_client.selecting.selection import Selection

# The deadline of a selection is this many steps for each that it may be ahead, and never less than a second: what is
# late by so much is lost to the trainer.
DEADLINE_STEPS = 5.0
MIN_DEADLINE_SECONDS = 1.0
# Steps that the median of their times is taken of.
OBSERVED_STEPS = 20
ENOUGH_STEPS = 10


@dataclass
class _Item:
    """A sub-batch, and the place from which the next one follows."""

    super_batch: Any
    picked: Picked
    candidates: int
    place: Place


class _Iteration:
    """From `place` on: what is out with the trainer, what was made and not yet yielded, and picks kept from before."""

    def __init__(self, place: Place, count: int, kept: Iterable[Picked] = (), *, begun: bool = True) -> None:
        self.place, self.count, self.begun = place, count, begun
        self.out: deque[_Item] = deque()
        self.made: deque[_Item] = deque()
        self.kept = deque(kept)
        self.batches: Generator[tuple[_Item, Any], None, None] | None = None  # until they are at an end

    def end(self) -> None:
        """Its threads end, after what they are doing."""
        if self.batches is not None:
            self.batches.close()
        self.batches = None

    def pending(self) -> list[Picked]:
        """All picks that follow `place`, in order."""
        return [*(item.picked for item in (*self.out, *self.made)), *self.kept]

    def used(self) -> None:
        """The trainer is done with the sub-batch that is out for longest."""
        if self.out:
            item = self.out.popleft()
            self.place, self.count = item.place, item.picked.count


class SelectingLoader:
    """Iterates over `super_batches` and yields, of each, the sub-batch that the sidecar picked, in the same form.

    `view(super_batch)` gives the arguments of `Selector.select` (default: keys "images" and "texts" of a mapping, and
    "ids" if it has them, or the first two of a tuple or list); `take(super_batch, indices)` gives the sub-batch
    (default: indexes every array, tensor and list in it). `prefetch` is how many selections may be ready or under way
    ahead of the trainer: from 2 on, one is made while the picks of the one before are taken; at 1, one after the other;
    at 0, while the trainer waits. `first_step` is the trainer step of the first sub-batch.
    `deadline` seconds bound each selection; by default they follow the trainer's own step time, within the selector's
    timeout, which counts for ranks that select as one. A super-batch of which fewer can be picked than of those before
    (the last of an epoch) is dropped, unless `last="keep"`.

    `last` is the Selection behind the sub-batch yielded last (`last.fallback` says why it is uniform), `progress`
    counts. `state_dict()` and `load_state_dict()` resume exactly: picks that were received and not yet yielded are
    yielded after it, without asking again; ranks that select as one ask again, all of them. `super_batches` with those
    two methods are resumed by them, others by drawing and leaving out what was yielded before.
    """

    def __init__(
        self,
        super_batches: Iterable[Any],
        selector: Any,
        *,
        view: Callable[[Any], Mapping[str, Any]] | None = None,
        take: Callable[[Any, Any], Any] | None = None,
        prefetch: int = 2,
        first_step: int = 0,
        deadline: float | None = None,
        last: Literal["drop", "keep"] = "drop",
    ) -> None:
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}; must be 0 or more")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline is {deadline}; must be positive")
        if last not in ("drop", "keep"):
            raise ValueError(f"last is {last!r}; must be 'drop' or 'keep'")
        self._source, self._selector = Source(super_batches), selector
        self._view, self._take = view or default_view, take or default_take
        self._prefetch, self._first_step, self._deadline, self._keep = prefetch, first_step, deadline, last == "keep"
        self.last: Selection | None = None
        self.progress = Progress()
        self._steps: deque[float] = deque(maxlen=OBSERVED_STEPS)
        self._picks: int | None = None
        self._told = False  # when a sub-batch was used
        self._lock = threading.Lock()
        self._iteration = _Iteration(Place(), self._count, begun=False)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            now = self._iteration
            resting = _Iteration(now.place, now.count, self._ahead(now), begun=False)
        return {name: value for name, value in vars(self).items() if name != "_lock"} | {"_iteration": resting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @classmethod
    def over(
        cls,
        dataset: Any,
        selector: Any,
        *,
        super_batch_size: int,
        view: Callable[[Any], Mapping[str, Any]],
        collate: Callable[[Sequence[Any]], Any] = collate,
        workers: int = 4,
        seed: int = 0,
        shuffle: bool = True,
        **options: Any,
    ) -> "SelectingLoader":
        """Over a map-style dataset (`len(dataset)`, `dataset[i]`): draws B indices, shows the sidecar
        `view(indices)`, low-resolution images and texts in the form of `Selector.select`'s arguments, and calls
        `dataset[i]`, in `workers` threads, for the picks only. Indices are the samples' ids unless the view has ids."""
        super_batches = SuperBatches(len(dataset), super_batch_size, seed=seed, shuffle=shuffle)
        take = Taken(dataset, collate, workers)
        return cls(super_batches, selector, view=partial(with_ids, view), take=take, **options)

    @property
    def wait_seconds(self) -> float:
        """How long the trainer waited so far."""
        return self.progress.wait_seconds

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Any]:
        iteration, batches = self._begin()
        found = self._next(iteration, batches)
        if found is None and self._joint:  # nothing was left of the iteration before
            iteration, batches = self._begin()
            found = self._next(iteration, batches)
        try:
            while found is not None:
                started = time.perf_counter()
                yield found[0]
                self._steps.append(time.perf_counter() - started)
                self.progress.step_seconds += self._steps[-1]
                found = self._next(iteration, batches)
        finally:
            if not self._joint:
                iteration.end()

    def _next(self, iteration: _Iteration, batches: Iterator[tuple[_Item, Any]]) -> tuple[Any] | None:
        """The next sub-batch, if there is one."""
        started = time.perf_counter()
        found = next(batches, None)
        self.progress.wait_seconds += time.perf_counter() - started
        if found is None:
            self._end(iteration)
            return None
        item, batch = found
        with self._lock:
            iteration.out.append(iteration.made.popleft())
            if not self._told:
                iteration.used()
        self.last = item.picked.selection
        self.progress.add(item.picked.selection, item.candidates)
        return (batch,)

    def tell_used(self) -> None:
        """From now on `used` is called for every sub-batch. For trainers that fetch the next one before they train on
        the present one: a state then begins after the last one that was used, not after the last one yielded."""
        self._told = True

    def used(self) -> None:
        """The trainer is done with the sub-batch that was yielded first of those it is not done with."""
        with self._lock:
            self._iteration.used()

    def close(self) -> None:
        """Ends its threads, which is of use for ranks that select as one: theirs outlive an iteration that is left, for
        the next one goes on with what they have asked for."""
        with self._lock:
            iteration = self._iteration
        iteration.end()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts: what was yielded, and the picks that were made ahead."""
        with self._lock:
            now = self._iteration
            seed = None if self._core is None else self._core.seed
            steps = self.progress.steps - len(now.out)
            return State(steps, now.place, self._picks, seed, now.count, self._ahead(now)).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there. To be called before it begins. Raises ValueError, and changes nothing
        then, if it cannot be the state of such a loader. Of a state that another rank saved, seed and picks are that
        rank's own: its place counts, and the next super-batches are asked for anew."""
        loaded = State.from_dict(state)
        self._source.go_to(loaded.place)
        own = loaded.process == process_name()
        kept = loaded.ahead if own and not self._joint else []
        self.progress.steps, self._picks = loaded.steps, loaded.picks
        if self._core is not None:
            self._core.count = kept[-1].count if kept else loaded.count
            if own and loaded.seed is not None:
                self._core.seed = loaded.seed
        self.close()
        with self._lock:
            self._iteration = _Iteration(loaded.place, loaded.count, kept, begun=False)

    def _begin(self) -> tuple[_Iteration, Iterator[tuple[_Item, Any]]]:
        """After an iteration that was left, super-batches that can go back to what was not yielded do so, and its picks
        stay; others begin as they like. Ranks that select as one go on with that iteration: what its threads have asked
        for, other ranks' threads have asked for too."""
        with self._lock:
            before = self._iteration
            self.progress.steps -= len(before.out)
            if self._joint and before.batches is not None:
                return before, self._again(before, before.batches)
            place, kept = before.place, self._ahead(before)
            if before.begun and place.state is None:
                place, kept = Place(), []
            here = self._source.here() if place == Place() else place
            iteration = self._iteration = _Iteration(here, self._count, kept)
        # From two on, a thread of its own selects while another one takes the picks of the selection before.
        selected = ahead(self._selected(iteration, place), max(0, self._prefetch - 1))
        iteration.batches = ahead(self._taken(selected), min(1, self._prefetch))
        return iteration, iteration.batches

    def _again(self, iteration: _Iteration, rest: Iterator[tuple[_Item, Any]]) -> Iterator[tuple[_Item, Any]]:
        """What was out with the trainer and not used, then the rest."""
        again = list(iteration.out)
        iteration.made.extendleft(reversed(again))
        iteration.out.clear()
        return chain(self._taken(item for item in again), rest)

    def _ahead(self, iteration: _Iteration) -> list[Picked]:
        """Each rank is ahead as far as its threads are: what all must ask alike begins where their trainers are."""
        return [] if self._joint else iteration.pending()

    def _end(self, iteration: _Iteration) -> None:
        """What follows the last sub-batch is a new beginning."""
        with self._lock:
            iteration.end()
            if self._iteration is not iteration:
                return
            here = self._source.here()
            if iteration.out:
                last = iteration.out[-1]
                last.place, last.picked = here, replace(last.picked, count=self._count)
            else:
                iteration.place, iteration.count = here, self._count

    def _taken(self, selected: Generator[_Item, None, None]) -> Generator[tuple[_Item, Any], None, None]:
        with closing(selected):
            for item in selected:
                yield item, self._take(item.super_batch, item.picked.selection.indices)

    def _selected(self, iteration: _Iteration, start: Place) -> Generator[_Item, None, None]:
        step = self._first_step + self.progress.steps  # goes on over epochs
        for super_batch, place in self._source.after(start):
            kept, candidates = bool(iteration.kept), 0
            if kept:
                picked = iteration.kept[0]
            elif (asked := self._ask(super_batch, step)) is not None:
                selection, candidates = asked
                picked = Picked(selection, self._count)
            else:
                self.progress.dropped += 1
                continue
            step += 1
            item = _Item(super_batch, picked, candidates, place)
            with self._lock:
                if kept:
                    iteration.kept.popleft()
                iteration.made.append(item)
            yield item

    def _ask(self, super_batch: Any, step: int) -> tuple[Selection, int] | None:
        """The selection and the number of candidates, None if it is too short."""
        arguments = dict(self._view(super_batch))
        if (timeout := self._timeout()) is not None:
            arguments["timeout"] = timeout
        try:
            selection = self._selector.select(**arguments, step=step)
        except TooFew:
            if self._picks is None:
                raise
            return None
        if len(selection.indices) < (self._picks or 0) and not self._keep:
            return None
        self._picks = max(self._picks or 0, len(selection.indices))
        return selection, len(arguments.get("images", ()))

    def _timeout(self) -> float | None:
        if self._deadline is not None or self._joint or len(self._steps) < ENOUGH_STEPS:
            return self._deadline
        most = float("inf") if self._core is None else self._core.timeout
        observed = DEADLINE_STEPS * (1 + self._prefetch) * median(self._steps)
        return None if observed >= most else min(most, max(MIN_DEADLINE_SECONDS, observed))

    @property
    def _core(self) -> Any:
        return getattr(self._selector, "core", None)

    @property
    def _count(self) -> int:
        """Selections of the selector; with its seed, it decides the noise of the next one."""
        return 0 if self._core is None else self._core.count

    @property
    def _joint(self) -> bool:
        """Whether ranks select as one."""
        return self._core is not None and self._core.settings.world_size > 1
