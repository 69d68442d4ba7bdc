"""Super-batches from shards that are read in turns, each from its beginning to its end, and mixed: diverse, from reads
that are sequential, and resumed exactly."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from selector_client.loading.loader_state import numbers, whole
from selector_client.loading.prefetch import prefetched

log = logging.getLogger(__name__)

_END = object()


@dataclass
class _Open:
    """A shard that is open: its place in the epoch's order, and how many of its samples were read."""

    place: int
    samples: Iterator[Any]
    read: int = 0


@dataclass(frozen=True)
class _Start:
    """Where the block of that `number` begins: `taken` shards of the epoch's order were opened before it, and of those
    that are still `open` it is known which place they have, and how many samples were read."""

    number: int = 0
    taken: int = 0
    open: tuple[tuple[int, int], ...] = ()


class InterleavedShards:
    """Super-batches, lists of B samples, from `shards`, whose samples `read(shard)` gives in an order of their own that
    never changes.

    An epoch opens the shards in an order that `seed` and epoch decide, `at_once` at a time, and reads each from its
    beginning to its end. Of those that are open it takes samples in turns until there are `buffer` (rounded up to whole
    super-batches), mixes these, and gives them away, while a thread reads as many again: so reads are sequential, and a
    super-batch has samples from many places. What does not fill a super-batch at the end of an epoch is left out.

    A shard that cannot be read, or not to its end, is warned of, counted in `failed`, and left there. If no shard of an
    epoch gives any sample, the last one's error is raised. The state has the epoch and a position in each open shard;
    to resume, those are opened again and what was read is passed over. Raises ValueError for sizes below 1, no shards,
    and a shard that is there twice.
    """

    def __init__(
        self,
        shards: Iterable[Any],
        read: Callable[[Any], Iterable[Any]],
        super_batch_size: int,
        *,
        at_once: int = 16,
        buffer: int = 10_000,
        seed: int = 0,
    ) -> None:
        self._shards, self._read = list(shards), read
        sizes = {
            "shards": len(self._shards),
            "super_batch_size": super_batch_size,
            "at_once": at_once,
            "buffer": buffer,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; must be 1 or more")
        names = sorted(map(str, self._shards))
        if twice := [one for one, other in pairwise(names) if one == other]:
            raise ValueError(f"shards has {twice[0]} more than once; its samples would come as often")
        self._size, self._at_once, self._seed = super_batch_size, at_once, seed
        self._block = -(-buffer // super_batch_size) * super_batch_size
        self.failed = 0
        self._epoch = self._drawn = self._iteration = 0
        self._start = _Start()

    def __iter__(self) -> Iterator[list[Any]]:
        self._iteration += 1
        iteration, epoch, drawn = self._iteration, self._epoch, self._drawn
        blocks = self._blocks(epoch, self._start)
        with closing(prefetched(blocks, 1, "selecting-loader-shards")) as ahead:
            for start, samples in ahead:
                order = np.random.default_rng([self._seed, epoch, 1 + start.number]).permutation(len(samples))
                for number in range(drawn, len(samples) // self._size):
                    self._start, self._drawn = start, number + 1
                    yield [samples[row] for row in order[number * self._size : (number + 1) * self._size].tolist()]
                    if iteration != self._iteration:  # a newer one has begun while this one was ahead, on a thread
                        return
                drawn = 0
        self._epoch, self._drawn, self._start = epoch + 1, 0, _Start()

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, where the present block begins, and how many super-batches of it were drawn."""
        start = self._start
        return {
            "shards": len(self._shards),
            "epoch": self._epoch,
            "block": start.number,
            "drawn": self._drawn,
            "taken": start.taken,
            "open": [position for position, _ in start.open],
            "read": [read for _, read in start.open],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on from there. Raises ValueError for what cannot be a state of these shards."""
        if (count := whole(state, "shards")) != len(self._shards):
            raise ValueError(f"state: shards is {count}; there are {len(self._shards)}, whose order is another one")
        taken, places, read = whole(state, "taken", count), numbers(state, "open"), numbers(state, "read")
        if len(places) != len(read) or len(set(places)) < len(places) or places.max(initial=-1) >= taken:
            raise ValueError(f"state: open is {places[:20]} beside {len(read)} as read; must be different shards")
        start = _Start(whole(state, "block"), taken, tuple(zip(places.tolist(), read.tolist(), strict=True)))
        epoch, drawn = whole(state, "epoch"), whole(state, "drawn", self._block // self._size)
        self._iteration += 1
        self._epoch, self._drawn, self._start = epoch, drawn, start

    def _blocks(self, epoch: int, start: _Start) -> Iterator[tuple[_Start, list[Any]]]:
        """Yields the blocks of an epoch from `start` on, each with where it begins."""
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._shards)).tolist()
        failures: deque[Exception] = deque(maxlen=1)
        running = deque(_Open(place, self._samples(order[place], read, failures), read) for place, read in start.open)
        while True:
            block: list[Any] = []
            taken = start.taken
            while len(block) < self._block:
                while len(running) < self._at_once and taken < len(order):
                    running.append(_Open(taken, self._samples(order[taken], 0, failures)))
                    taken += 1
                if not running:
                    break
                shard = running.popleft()
                if (sample := next(shard.samples, _END)) is not _END:
                    block.append(sample)
                    shard.read += 1
                    running.append(shard)
            if not block:
                if start == _Start() and failures:
                    raise failures[-1]
                return
            yield start, block
            start = _Start(start.number + 1, taken, tuple((shard.place, shard.read) for shard in running))

    def _samples(self, index: int, read: int, failures: deque[Exception]) -> Iterator[Any]:
        """Yields what follows the first samples of a shard, of which `read` were read before."""
        try:
            yield from islice(self._read(self._shards[index]), read, None)
        except Exception as error:  # whatever a reader raises, the other shards can still be read
            failures.append(error)
            self.failed += 1
            log.warning("shard %s is left where it cannot be read: %s", self._shards[index], error or repr(error))
