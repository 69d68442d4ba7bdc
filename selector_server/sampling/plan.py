"""How many picks, in which chunks, drawn how: everything about a draw but the scores."""

from dataclasses import dataclass
from enum import Enum


class Draw(Enum):
    """How the picks of a chunk are taken."""

    SAMPLE = "sample"
    TOP_K = "top-k"


@dataclass(frozen=True)
class Plan:
    """A draw of b picks in chunks.

    `sizes`: picks of each chunk, their sum is b. `gain`: multiplier on scores before the exponential (JEST
    Algorithm 2, `softmax_score_gain`). `seed`: 64 bits; noise is a function of (seed, round, candidate). `ranks`: the
    candidates are that many equal, contiguous shares, and every chunk takes equally many of each, so that
    data-parallel ranks get equal local batches; sizes must be multiples of it.
    """

    sizes: tuple[int, ...]
    gain: float
    draw: Draw
    seed: int
    ranks: int = 1

    def __post_init__(self) -> None:
        if any(size % self.ranks for size in self.sizes):
            raise ValueError(f"chunk sizes are {self.sizes}; must be multiples of the number of ranks, {self.ranks}")

    @property
    def picks(self) -> int:
        """b."""
        return sum(self.sizes)


def chunk_sizes(picks: int, chunks: int) -> tuple[int, ...]:
    """`picks` split into `chunks` sizes that differ by at most one, larger ones first."""
    small, larger = divmod(picks, chunks)
    return (small + 1,) * larger + (small,) * (chunks - larger)
