"""Feeds a trainer with sub-batches, choosing the next one while the trainer works on the present one."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any, Literal

from selector_client.ahead import ahead
from selector_client.dataset import SuperBatches, collate
from selector_client.forms import default_take, default_view
from selector_client.request import TooFew
from selector_client.selection import Selection
from selector_client.state import indices, items, part, text, whole

# The deadline of a selection is this many steps for each that it may be ahead, and never less than a second: what is
# late by so much is lost to the trainer.
DEADLINE_STEPS = 5.0
MIN_DEADLINE_SECONDS = 1.0
# Steps that the median of their times is taken of.
OBSERVED_STEPS = 20
ENOUGH_STEPS = 10


@dataclass
class Progress:
    """Of all iterations so far. `wait_seconds` is how long the trainer waited for sub-batches, `step_seconds` how long
    it worked on them; `fallbacks` counts uniform sub-batches by reason, `stale` those that older weights scored than
    the settings accept; `dropped` super-batches were too short."""

    steps: int = 0
    candidates: int = 0
    picks: int = 0
    wait_seconds: float = 0.0
    step_seconds: float = 0.0
    stale: int = 0
    dropped: int = 0
    lag_steps: int | None = None
    fallbacks: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        share = self.wait_seconds / max(1e-9, self.wait_seconds + self.step_seconds)
        lag = "" if self.lag_steps is None else f", weights {self.lag_steps} steps old"
        failed = ", ".join(f"{count} x {reason}" for reason, count in self.fallbacks.items()) or "none"
        return f"{self.steps} steps, {share:.1%} of the time waited, fallbacks: {failed}{lag}"


@dataclass
class _Item:
    """A sub-batch, and the state from which the next one follows."""

    super_batch: Any
    selection: Selection
    candidates: int
    drawn: int  # super-batches of this iteration, with this one
    source: Any  # state of the super-batches
    count: int  # selections of the selector


class SelectingLoader:
    """Iterates over `super_batches` and yields, of each, the sub-batch that the sidecar picked, in the same form.

    `view(super_batch)` gives the arguments of `Selector.select` (default: keys "images" and "texts" of a mapping, and
    "ids" if it has them, or the first two of a tuple or list); `take(super_batch, indices)` gives the sub-batch
    (default: indexes every array, tensor and list in it). `prefetch` is how many selections may be ready or under way
    ahead of the trainer: from 2 on, one is made while the picks of the one before are taken; at 1, one after the other;
    at 0, while the trainer waits. `first_step` is the trainer step of the first sub-batch.
    `deadline` seconds bound each selection; by default they follow the trainer's own step time, within the selector's
    timeout. A super-batch of which fewer can be picked than of the first one (the last of an epoch) is dropped, unless
    `last="keep"`.

    `last` is the Selection behind the sub-batch yielded last (`last.fallback` says why it is uniform), `progress`
    counts. `state_dict()` and `load_state_dict()` resume exactly: picks that were received and not yet yielded are
    yielded after it, without asking again. `super_batches` with those two methods are resumed by them, others by
    drawing and leaving out what was yielded before.
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
        self._super_batches, self._selector = super_batches, selector
        self._view, self._take = view or default_view, take or default_take
        self._prefetch, self._first_step, self._deadline, self._keep = prefetch, first_step, deadline, last == "keep"
        self.last: Selection | None = None
        self.progress = Progress()
        self._steps: deque[float] = deque(maxlen=OBSERVED_STEPS)
        self._picks: int | None = None
        self._lock = threading.Lock()
        self._made: deque[_Item] = deque()  # and not yet yielded
        self._yielded: _Item | None = None
        self._resumed: deque[Selection] = deque()
        self._skip = 0

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
        threads = ThreadPoolExecutor(workers, thread_name_prefix="selecting-loader-decode") if workers else None
        read = map if threads is None else threads.map
        return cls(
            SuperBatches(len(dataset), super_batch_size, seed=seed, shuffle=shuffle),
            selector,
            view=lambda indices: {"ids": indices} | dict(view(indices)),
            take=lambda indices, picks: collate(list(read(lambda index: dataset[int(index)], indices[picks]))),
            **options,
        )

    @property
    def wait_seconds(self) -> float:
        """How long the trainer waited so far."""
        return self.progress.wait_seconds

    def __len__(self) -> int:
        return len(self._super_batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self._rewind()
        # From two on, a thread of its own selects while another one takes the picks of the selection before.
        selected = ahead(self._selected(self._made), max(0, self._prefetch - 1))
        batches = ahead(self._taken(selected), min(1, self._prefetch))
        while True:
            started = time.perf_counter()
            found = next(batches, None)
            self.progress.wait_seconds += time.perf_counter() - started
            if found is None:
                with self._lock:
                    self._yielded = None  # what follows is a new beginning
                return
            item, batch = found
            with self._lock:
                self._made.popleft()
                self._yielded = item
            self._count(item)
            started = time.perf_counter()
            yield batch
            self._steps.append(time.perf_counter() - started)
            self.progress.step_seconds += self._steps[-1]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts: what was yielded, and the picks that were made ahead."""
        with self._lock:
            made, last = list(self._made), self._yielded
        newest = made[-1] if made else last
        core = getattr(self._selector, "core", None)
        return {
            "steps": self.progress.steps,
            "drawn": 0 if last is None else last.drawn,
            "source": self._source_state() if last is None else last.source,
            "picks": self._picks,
            "ahead": [{"indices": i.selection.indices.tolist(), "fallback": i.selection.fallback} for i in made],
            "selector": None if core is None else [core.seed, core.count if newest is None else newest.count],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there. To be called before it begins. Raises ValueError, and changes nothing
        then, if it cannot be the state of such a loader."""
        steps, drawn = whole(state, "steps"), whole(state, "drawn")
        picks = None if part(state, "picks") is None else whole(state, "picks")
        ahead = [Selection(indices=indices(one), fallback=text(one, "fallback")) for one in items(state, "ahead")]
        numbers, source = None if part(state, "selector") is None else items(state, "selector"), part(state, "source")
        if numbers is not None and not (len(numbers) == 2 and all(type(one) is int for one in numbers)):
            raise ValueError(f"state: selector is {str(numbers)[:100]}; must be two whole numbers")
        if source is not None:
            if not hasattr(self._super_batches, "load_state_dict"):
                raise ValueError("state: source is set; these super_batches have no load_state_dict")
            self._super_batches.load_state_dict(source)
        self.progress.steps, self._picks, self._skip = steps, picks, 0 if source is not None else drawn
        self._made.clear()
        self._yielded, self._resumed = None, deque(ahead)
        if numbers is not None:
            self._selector.core.seed, self._selector.core.count = numbers

    def _rewind(self) -> None:
        """Super-batches that can go back to what was not yielded when the last iteration was left do so, and its
        picks stay; others begin as they like."""
        with self._lock:
            left, self._made = list(self._made), deque()
            last, self._yielded = self._yielded, None
        if last is not None and last.source is not None:
            self._super_batches.load_state_dict(last.source)  # type: ignore[attr-defined]
            self._resumed.extendleft(item.selection for item in reversed(left))

    def _taken(self, selected: Iterator[_Item]) -> Iterator[tuple[_Item, Any]]:
        with closing(selected):  # type: ignore[type-var] # a generator
            for item in selected:
                yield item, self._take(item.super_batch, item.selection.indices)

    def _selected(self, made: deque[_Item]) -> Iterator[_Item]:
        super_batches = iter(self._super_batches)
        drawn, step = self._skip, self._first_step + self.progress.steps
        next(islice(super_batches, self._skip, self._skip), None)
        self._skip = 0
        for super_batch in super_batches:
            drawn += 1
            source = self._source_state()
            try:
                selection, candidates = self._select(super_batch, step)
            except TooFew:
                if self._picks is None:
                    raise
                self.progress.dropped += 1
                continue
            self._picks = self._picks or len(selection.indices)
            if len(selection.indices) != self._picks and not self._keep:
                self.progress.dropped += 1
                continue
            step += 1  # goes on over epochs
            core = getattr(self._selector, "core", None)
            count = 0 if core is None else core.count
            item = _Item(super_batch, selection, candidates, drawn, source, count)
            with self._lock:
                made.append(item)
            yield item

    def _select(self, super_batch: Any, step: int) -> tuple[Selection, int]:
        if self._resumed:
            return self._resumed.popleft(), 0
        arguments = dict(self._view(super_batch))
        if (timeout := self._timeout()) is not None:
            arguments["timeout"] = timeout
        return self._selector.select(**arguments, step=step), len(arguments.get("images", ()))

    def _timeout(self) -> float | None:
        if self._deadline is not None or len(self._steps) < ENOUGH_STEPS:
            return self._deadline
        core = getattr(self._selector, "core", None)
        most = float("inf") if core is None else core.timeout
        observed = DEADLINE_STEPS * (1 + self._prefetch) * median(self._steps)
        return None if observed >= most else min(most, max(MIN_DEADLINE_SECONDS, observed))

    def _source_state(self) -> Any:
        return self._super_batches.state_dict() if hasattr(self._super_batches, "state_dict") else None

    def _count(self, item: _Item) -> None:
        progress, selection = self.progress, item.selection
        self.last = selection
        progress.steps += 1
        progress.candidates += item.candidates
        progress.picks += len(selection.indices)
        progress.stale += selection.stale
        progress.lag_steps = selection.weights_lag_steps
        if selection.fallback:
            progress.fallbacks[selection.fallback] += 1
