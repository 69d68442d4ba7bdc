"""Super-batches from shards that are read in turns, each from its beginning to its end, and mixed: diverse, from reads
that are sequential, and resumed exactly."""

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from selector_client.loading.loader_state import numbers, whole

log = logging.getLogger(__name__)

_END = object()
_NOTHING = (-1, -1)  # was given yet


@dataclass
class _Open:
    """A shard that is open: its place in the epoch's order, and how many of its samples were read."""

    place: int
    samples: Iterator[Any]
    read: int = 0


@dataclass(frozen=True)
class _Start:
    """Where a block of B samples begins, the epoch's `number`-th from 0: `taken` shards of its order were opened before
    it, and of those that are still `open` it is known which place they have, and how many samples were read."""

    number: int = 0
    taken: int = 0
    open: tuple[tuple[int, int], ...] = ()


class InterleavedShards:
    """Super-batches, lists of B samples, from `shards`, whose samples `read(shard)` gives in an order of their own that
    never changes.

    An epoch opens the shards in an order that `seed` and epoch decide, `at_once` at a time, and reads each from its
    beginning to its end. Of those that are open it takes samples in turns, and puts each off by a random number of
    samples below twice `buffer`, so that it holds `buffer` of them on average: reads are sequential, and a super-batch
    has samples from many places. What does not fill a super-batch at the end of an epoch is left out.

    A shard that cannot be read, or not to its end, is warned of, counted in `failed`, and left there. If no shard of an
    epoch gives any sample, the last one's error is raised. The state has the epoch and positions in shards that were
    open lately; to resume, these are opened again, and what was given is passed over. Raises ValueError for sizes below
    1, no shards, and a shard that is there twice.
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
        self._window = 2 * buffer
        self.failed = 0
        self._epoch = self._iteration = 0
        self._start, self._through = _Start(), _NOTHING

    def __iter__(self) -> Iterator[list[Any]]:
        self._iteration += 1
        iteration, epoch, through = self._iteration, self._epoch, self._through
        held: list[tuple[int, int, Any]] = []  # turn, position in the stream, and sample, of those that were read
        starts: deque[_Start] = deque()  # of the blocks that may have samples among them
        blocks, ended = self._blocks(epoch, self._start), False
        while not ended:
            start, samples = next(blocks, (self._start, []))
            ended, first = not samples, start.number * self._size
            late = np.random.default_rng([self._seed, epoch, 1 + start.number]).integers(0, self._window, self._size)
            turns = (first + np.arange(self._size) + late).tolist()
            new = [(turns[row], first + row, sample) for row, sample in enumerate(samples)]
            held = sorted(held + [one for one in new if one[:2] > through], key=itemgetter(0, 1))
            starts += [] if ended else [start]
            # What follows comes no earlier than its position in the stream.
            ready = len(held) if ended else bisect_left(held, first + len(samples), key=itemgetter(0))
            while ready >= self._size:
                given, held, ready = held[: self._size], held[self._size :], ready - self._size
                through = given[-1][:2]
                while len(starts) > 1 and starts[1].number * self._size + self._window <= through[0] + 1:
                    starts.popleft()
                self._start, self._through = starts[0], through
                yield [sample for _, _, sample in given]
                if iteration != self._iteration:  # a newer one has begun while this one was ahead, on a thread
                    return
        self._epoch, self._start, self._through = epoch + 1, _Start(), _NOTHING

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, from where its shards must be read again, and which sample was given last."""
        start = self._start
        return {
            "shards": len(self._shards),
            "epoch": self._epoch,
            "block": start.number,
            "taken": start.taken,
            "open": [place for place, _ in start.open],
            "read": [read for _, read in start.open],
            "through": [1 + number for number in self._through],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on from there. Raises ValueError for what cannot be a state of these shards."""
        if (count := whole(state, "shards")) != len(self._shards):
            raise ValueError(f"state: shards is {count}; there are {len(self._shards)}, whose order is another one")
        taken, places, read = whole(state, "taken", count), numbers(state, "open"), numbers(state, "read")
        if len(places) != len(read) or len(set(places)) < len(places) or places.max(initial=-1) >= taken:
            raise ValueError(f"state: open is {places[:20]} beside {len(read)} as read; must be different shards")
        start = _Start(whole(state, "block"), taken, tuple(zip(places.tolist(), read.tolist(), strict=True)))
        epoch, through = whole(state, "epoch"), numbers(state, "through").tolist()
        if len(through) != 2:
            raise ValueError(f"state: through is {through[:20]}; must be two numbers")
        self._iteration += 1
        self._epoch, self._start, self._through = epoch, start, (through[0] - 1, through[1] - 1)

    def _blocks(self, epoch: int, start: _Start) -> Iterator[tuple[_Start, list[Any]]]:
        """Yields an epoch's samples from `start` on as blocks of B, each with where it begins."""
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._shards)).tolist()
        failures: deque[Exception] = deque(maxlen=1)
        running = deque(_Open(place, self._samples(order[place], read, failures), read) for place, read in start.open)
        while True:
            block: list[Any] = []
            taken = start.taken
            while len(block) < self._size:
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
