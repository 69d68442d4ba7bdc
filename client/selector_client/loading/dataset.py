"""Super-batches over a map-style dataset: its indices in an order that a seed decides, and the samples picked."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.loading.batch_layout import with_caption
from selector_client.loading.loader_state import whole


class SuperBatches:
    """The indices of a dataset, int64 [B] at a time. Iterating once is one epoch, which has every index at most once,
    in an order of its own; what does not fill a super-batch is left out. The next iteration is the next epoch. The same
    seed gives the same order.

    Raises ValueError if the dataset has fewer than B entries.
    """

    def __init__(self, size: int, super_batch_size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        if not 1 <= super_batch_size <= size:
            raise ValueError(f"super_batch_size is {super_batch_size}; must be 1 to the dataset's size, {size}")
        self._size, self._batch = size, super_batch_size
        self._seed, self._shuffle = seed, shuffle
        self._epoch = self._cursor = self._iteration = 0

    def __len__(self) -> int:
        return self._size // self._batch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        self._iteration += 1
        order, iteration = self._order(), self._iteration
        while self._cursor < len(self):
            start = self._cursor * self._batch
            self._cursor += 1
            yield order[start : start + self._batch]
            if iteration != self._iteration:  # a newer one has begun while this one was ahead, on a thread
                return
        self._epoch, self._cursor = self._epoch + 1, 0

    def _order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._size)
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._size)

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and how many of its super-batches were drawn."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration go on from there. Raises ValueError."""
        epoch, cursor = whole(state, "epoch"), whole(state, "cursor")
        self._iteration += 1
        self._epoch, self._cursor = epoch, cursor


class SampleReader:
    """Reads the picks of a super-batch of indices from a map-style dataset, in `workers` threads of this process."""

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Any], workers: int) -> None:
        self._dataset, self._collate, self._workers = dataset, collate, workers
        self._threads: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_threads": None}

    def __call__(self, indices: NDArray[np.int64], picks: NDArray[np.int64], captions: Mapping[int, int]) -> Any:
        """Returns the picks together. `captions` says which of its captions was shown of a candidate that has
        several."""
        samples = self._map(self._sample, indices[picks].tolist())
        shown = (with_caption(sample, captions.get(pick)) for sample, pick in zip(samples, picks.tolist(), strict=True))
        return self._collate(list(shown))

    def _sample(self, index: int) -> Any:
        return self._dataset[index]

    @property
    def _map(self) -> Callable[..., Iterator[Any]]:
        if not self._workers:
            return map
        if self._threads is None or self._threads[0] != os.getpid():  # a forked child lacks its parent's threads
            self._threads = os.getpid(), ThreadPoolExecutor(self._workers, thread_name_prefix="selecting-loader-decode")
        return self._threads[1].map


class IndexView:
    """Shows a selector samples of a map-style dataset by their indices, int64 [n]: what `view` makes of them, with
    `names(indices)` as ids unless the view has ids. Without `names` the indices are the ids."""

    def __init__(
        self, view: Callable[[Any], Mapping[str, Any]], names: Callable[[NDArray[np.int64]], Any] | None = None
    ) -> None:
        self._view, self._names = view, names

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        return {"ids": self.ids(indices)} | dict(self._view(indices))

    def ids(self, indices: NDArray[np.int64]) -> Any:
        """Returns the samples' ids. Nothing of the samples is read."""
        return indices if self._names is None else self._names(indices)

    def rows(self, indices: NDArray[np.int64], rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """Returns what the view shows of some rows of these indices."""
        return self._view(indices[rows])


def batch_size(super_batches: Any) -> int | None:
    """Returns how many candidates the super-batches of a data loader have if nothing is missing."""
    size = getattr(super_batches, "batch_size", None)
    return size if isinstance(size, int) and size > 1 and not isinstance(size, bool) else None


def size_of_last(super_batches: Any) -> int | None:
    """Returns how many candidates the last super-batch of a data loader of torch has, or None if nobody can know."""
    size, sampler = batch_size(super_batches), getattr(super_batches, "sampler", None)
    if size is None or sampler is None or not hasattr(sampler, "__len__"):
        return None
    return size if super_batches.drop_last else (len(sampler) - 1) % size + 1
