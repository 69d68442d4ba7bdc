"""What became of each sample, super-batch by super-batch: a ring of sightings that is searched when somebody asks."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selector_server.inspection.observation import Observation

# So many sightings are kept, 17 bytes each.
SIGHTINGS = 1 << 20


@dataclass(frozen=True)
class Sighting:
    """A sample in one super-batch, whose `fate` is one of Fate. A loss is NaN where a model did not look."""

    number: int
    step: int | None
    at: float
    fate: int
    learner: float
    reference: float


@dataclass(frozen=True)
class _Block:
    """The sightings of one super-batch lie at `start` of the ring, where it may begin anew."""

    number: int
    step: int | None
    at: float
    start: int
    size: int


class History:
    """The last `size` sightings of samples that have ids. Samples are told apart by a hash of 64 bits, which is another
    one in each process. Its memory is taken at once, and does not grow."""

    def __init__(self, size: int = SIGHTINGS) -> None:
        self._size = size
        self._keys = np.ones(size, np.int64)
        self._fates = np.ones(size, np.uint8)
        self._losses = np.ones((2, size), np.float32)
        self._blocks: deque[_Block] = deque()
        self._next = self._held = 0

    def add(self, seen: Observation, ids: Sequence[bytes]) -> None:
        """Remembers the candidates of a super-batch, or the first of them if there are more than it holds."""
        count = min(len(ids), self._size)
        while self._blocks and self._held + count > self._size:
            self._held -= self._blocks.popleft().size
        places = self._places(self._next, count)
        self._keys[places] = np.fromiter(map(hash, ids[:count]), np.int64, count)
        self._fates[places] = seen.fates[:count]
        for mine, theirs in zip(self._losses, (seen.learner, seen.reference), strict=True):
            mine[places] = np.nan if theirs is None else theirs[:count]
        self._blocks.append(_Block(seen.number, seen.step, seen.at, self._next, count))
        self._next, self._held = (self._next + count) % self._size, self._held + count

    def of(self, key: bytes) -> list[Sighting]:
        """All kept sightings of a sample, oldest first."""
        alike = self._keys == hash(key)
        if not alike.any():
            return []
        found = []
        for block in self._blocks:
            places = self._places(block.start, block.size)
            found += [
                Sighting(
                    block.number,
                    block.step,
                    block.at,
                    int(self._fates[place]),
                    *(float(loss) for loss in self._losses[:, place]),
                )
                for place in (places[alike[places]].tolist())
            ]
        return found

    def _places(self, start: int, count: int) -> NDArray[np.int64]:
        return (start + np.arange(count)) % self._size
