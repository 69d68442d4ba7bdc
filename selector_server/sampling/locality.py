"""How alike the candidates of a super-batch are, as the reference sees their images, beside what chance would bring.

In a stream that was shuffled well, neighbours are as alike as any two candidates. Where they are more alike, a
sub-batch holds near-duplicates and false negatives, and training learns less from it (docs/monitoring.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# So many candidates are looked at at once: a CPU's cache holds them, and a GPU needs few calls.
CPU_ROWS, GPU_ROWS = 512, 8192
# Two images whose cosine is above this are near-duplicates.
NEAR_DUPLICATE = 0.95
# At most so many picks are compared with all candidates.
COMPARED_PICKS = 64


@dataclass(frozen=True)
class Neighbours:
    """The mean cosine of `adjacent` candidates, and that of two at `random`."""

    adjacent: float
    random: float


@dataclass(frozen=True)
class Locality(Neighbours):
    """With it, the share of the picks that have a near-duplicate among the other candidates."""

    near_duplicates: float


def neighbours(image: Tensor, rows: Tensor, share: int) -> Neighbours | None:
    """Compares some candidates of a super-batch, whose embeddings are `image`, float [n, D] with rows of length one.

    `rows`, int64 [n], are their indices in it, ascending: those are adjacent that have no other between them, and lie
    in the same share of so many candidates. Of random ones it is the mean over all pairs of two, so that nothing is
    drawn. None if none are adjacent.
    """
    adjacent = (rows[1:] - rows[:-1] == 1) & (rows[1:] % share > 0)
    if not adjacent.any():
        return None
    cosines, sums, squares = [], [], []
    for start, stop in _slices(image):
        here, after = image[start:stop], image[start + 1 : stop + 1]
        cosines.append((here[: len(after)] * after).sum(dim=1))
        sums.append(here.sum(dim=0))
        squares.append((here * here).sum())
    # The square of the sum of all has each pair twice, and each candidate with itself once.
    count, both = len(image), torch.stack(sums).double().sum(dim=0).square().sum()
    random = (both - torch.stack(squares).double().sum()) / (count * (count - 1))
    return Neighbours(float(torch.cat(cosines).double()[adjacent].mean()), float(random))


def near_duplicates(image: Tensor, picks: Tensor, open_: Tensor | None = None) -> float:
    """The share of the picks, int64 [b], that have a near-duplicate among the other open candidates, bool [B]; all are
    open without it. `image` is that of all candidates, float [B, D]. At most COMPARED_PICKS of them are looked
    at, evenly spaced in the super-batch."""
    compared = image[picks.sort().values[:: -(-len(picks) // COMPARED_PICKS)]]
    # Each is compared with itself, too, and does not count for that.
    alike = -((compared * compared).sum(dim=1) > NEAR_DUPLICATE).long()
    for start, stop in _slices(image):
        near = compared @ image[start:stop].T > NEAR_DUPLICATE
        alike += (near if open_ is None else near & open_[start:stop]).sum(dim=1)
    return float((alike > 0).double().mean())


def _slices(image: Tensor) -> list[tuple[int, int]]:
    """Where each begins and ends."""
    rows = CPU_ROWS if image.device.type == "cpu" else GPU_ROWS
    return [(start, start + rows) for start in range(0, len(image), rows)]
