"""In which order a trainer reads its pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from selector_client import InterleavedShards

from selector_tools.datasets.dataset import Pictures

RUN = 32  # neighbours that are read together
HOT = 1000  # items of which half of a hot stream's entries are copies

# natural: as a crawl of the families would have stored the pool, of which runs of neighbours are read in random order;
# shuffled: at random; hot: at random, and half of the entries are copies of a few items. The others are READERS.
Kind = Literal["natural", "shuffled", "hot", "sequential", "buffered", "interleaved"]
# How shards of the pool in its natural order are read, each to its end: so many at once, through a buffer of so many
# samples (InterleavedShards).
READERS: dict[Kind, tuple[int, int]] = {"sequential": (1, 1), "buffered": (1, 1000), "interleaved": (8, 1000)}
SHARDS = 16


@dataclass(frozen=True)
class Stream:
    """What a trainer reads: entry i is row `rows[i]` of the pool, int64 [n], and `order`, int64 [n], is the order in
    which shards hold the entries. With a `reader`, one of READERS, whole shards are read."""

    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    reader: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def super_batches(self, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Yields the entries of one super-batch after the other, without end."""
        if self.reader is None:
            yield from runs(self.order, size, seed)
            return
        at_once, buffer = self.reader
        shards = np.array_split(self.order, SHARDS)
        read = InterleavedShards(
            range(SHARDS), lambda shard: shards[shard].tolist(), size, at_once=at_once, buffer=buffer, seed=seed
        )
        while True:
            yield from (np.array(entries) for entries in read)


def stream(kind: Kind, pictures: Pictures, seed: int) -> Stream:
    """Returns a stream of the pool. The pool itself is in random order."""
    rows = np.arange(len(pictures))
    if kind == "natural" or kind in READERS:
        return Stream(rows, stored_order(pictures), READERS.get(kind))
    if kind == "hot":
        rng = np.random.default_rng([seed, 4])
        chosen = rng.permutation(len(rows))
        hot, kept = chosen[:HOT], chosen[: len(rows) // 2]
        copies = rng.choice(hot, len(rows) - len(kept))
        rows = rng.permutation(np.concatenate([kept, copies]))
    return Stream(rows, np.arange(len(rows)))


def draws(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws `size` different rows of `count` again and again without end, in shuffled epochs."""
    # The stream must differ from the one that shuffles captions, or the first epoch begins with all shuffled ones.
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(count)
    cursor = 0
    while True:
        if cursor + size > count:
            order, cursor = rng.permutation(count), 0
        yield order[cursor : cursor + size]
        cursor += size


def stored_order(pictures: Pictures) -> NDArray[np.int64]:
    """Returns the rows, int64 [n], as a crawl of the families would have stored them: pictures of one hand follow one
    another, and among these the pictures of one concept."""
    return np.lexsort((pictures.concepts, pictures.families)).astype(np.int64)


def runs(order: NDArray[np.int64], size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws super-batches of `size` different rows without end, as shards give them that are read in random order: each
    one has the next `size / RUN` runs of neighbours in `order`. Every epoch cuts the runs elsewhere, and drops what
    fills none. Raises ValueError if `order` does not hold one super-batch wherever it is cut."""
    at_once = size // RUN
    if size % RUN or size < RUN or len(order) < size + RUN - 1:
        raise ValueError(f"super-batch is {size}; must be a multiple of {RUN} and at most {len(order) - RUN + 1}")
    rng = np.random.default_rng([seed, 1])
    while True:
        start = int(rng.integers(RUN))
        whole = order[start : start + (len(order) - start) // RUN * RUN].reshape(-1, RUN)
        shuffled = rng.permutation(len(whole))
        for first in range(0, len(whole) - at_once + 1, at_once):
            yield whole[shuffled[first : first + at_once]].ravel()
