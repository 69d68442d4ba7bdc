"""What a draw is asked for, and what it gives: everything but the scores."""

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Draw(Enum):
    """How the picks of a chunk are taken: sampled by their scores, or the highest of them."""

    SAMPLE = "sample"
    TOP_K = "top-k"


@dataclass(frozen=True)
class Plan:
    """A draw of b picks: `explore` of them uniformly, and then the others in chunks, by their scores.

    `sizes` are the picks of each chunk; with `explore` their sum is b. `gain` multiplies scores before the exponential
    (JEST Algorithm 2, `softmax_score_gain`). `seed` has 64 bits; noise is a function of (seed, round, candidate), where
    a candidate is its index, or else its number in `positions`, int64 [B], on the CPU. With
    `ranks`, the candidates are that many equal, contiguous shares, and every chunk takes equally many of each, so that
    data-parallel ranks get equal local batches. Raises ValueError for sizes, or uniform picks, that are not multiples
    of it.
    """

    sizes: tuple[int, ...]
    gain: float
    draw: Draw
    seed: int
    ranks: int = 1
    explore: int = 0
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if any(size % self.ranks for size in (*self.sizes, self.explore)):
            sizes = f"chunk sizes are {self.sizes} after {self.explore} uniform picks"
            raise ValueError(f"{sizes}; must be multiples of the number of ranks, {self.ranks}")

    @property
    def picks(self) -> int:
        """b, the number of picks."""
        return self.explore + sum(self.sizes)


@dataclass(frozen=True)
class Picks:
    """`indices`, int64 [b], are in draw order and do not repeat; `scores`, float64 [b], are each pick's score when it
    was drawn, in nats and without the gain; `total` is the score of the picks taken as one batch. Of a draw that keeps
    picks apart, `near` are the candidates held here that are too much like a pick, bool [n], picks among them."""

    indices: Tensor
    scores: Tensor
    total: float
    near: Tensor | None = None


def chunk_sizes(picks: int, chunks: int) -> tuple[int, ...]:
    """`picks` split into `chunks` sizes that differ by at most one, larger ones first."""
    small, larger = divmod(picks, chunks)
    return (small + 1,) * larger + (small,) * (chunks - larger)
