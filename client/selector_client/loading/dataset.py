"""A map-style dataset: super-batches of its indices, in an order that a seed decides, and the samples picked."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.loading.loader_state import whole


class SuperBatches:
    """Iterating once is one epoch: every index at most once, int64 [B] at a time, in an order of its own; what does not
    fill a super-batch is left out. The next iteration is the next epoch. The same seed gives the same order.

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
            if iteration != self._iteration:  # a newer one has begun; this one is still ahead of it, on a thread
                return
        self._epoch, self._cursor = self._epoch + 1, 0

    def _order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._size)
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._size)

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there with the next iteration. Raises ValueError."""
        epoch, cursor = whole(state, "epoch"), whole(state, "cursor")
        self._iteration += 1
        self._epoch, self._cursor = epoch, cursor


class Taken:
    """Reads the picks of a super-batch of indices from a map-style dataset, in `workers` threads of this process."""

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Any], workers: int) -> None:
        self._dataset, self._collate, self._workers = dataset, collate, workers
        self._threads: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_threads": None}

    def __call__(self, indices: NDArray[np.int64], picks: NDArray[np.int64]) -> Any:
        return self._collate(list(self._map(self._sample, indices[picks].tolist())))

    def _sample(self, index: int) -> Any:
        return self._dataset[index]

    @property
    def _map(self) -> Callable[..., Iterator[Any]]:
        if not self._workers:
            return map
        if self._threads is None or self._threads[0] != os.getpid():  # a forked child has none of its parent's threads
            self._threads = os.getpid(), ThreadPoolExecutor(self._workers, thread_name_prefix="selecting-loader-decode")
        return self._threads[1].map


def with_ids(view: Callable[[Any], Mapping[str, Any]], indices: NDArray[np.int64]) -> dict[str, Any]:
    """What the view shows, with the indices as ids unless it has some."""
    return {"ids": indices} | dict(view(indices))


def collate(samples: Sequence[Any]) -> Any:
    """Samples to a batch: torch's own way if the trainer uses torch, otherwise arrays are stacked; mappings, tuples and
    lists keep their form, strings become lists."""
    if "torch" in sys.modules:
        return import_module("torch.utils.data").default_collate(list(samples))
    return _stacked(samples)


def _stacked(samples: Sequence[Any]) -> Any:
    first = samples[0]
    if isinstance(first, dict):
        return {key: _stacked([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_stacked(part) for part in zip(*samples, strict=True))
    if isinstance(first, str | bytes):
        return list(samples)
    return np.stack([np.asarray(sample) for sample in samples])
