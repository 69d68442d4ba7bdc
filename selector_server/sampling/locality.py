"""How alike the candidates of a super-batch are, as the reference sees their images, beside what chance would bring.

In a stream that was shuffled well, neighbours are as alike as any two candidates. Where they are more alike, a
sub-batch holds near-duplicates and false negatives, and training learns less from it (docs/monitoring.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selector_server.sampling.embeddings import SLICE

# Two images whose cosine is above this are near-duplicates.
NEAR_DUPLICATE = 0.95
# At most so many picks, evenly spaced over the draw, are compared with all candidates.
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
    pairs = zip(torch.split(image[:-1], SLICE), torch.split(image[1:], SLICE), strict=True)
    cosines = torch.cat([(one * other).sum(dim=1, dtype=torch.float64) for one, other in pairs])
    # The square of the sum has each pair twice, and each candidate with itself once.
    count, both = len(image), image.sum(dim=0).double().square().sum()
    alone = torch.linalg.vector_norm(image, dim=1).double().square().sum()
    return Neighbours(float(cosines[adjacent].mean()), float((both - alone) / (count * (count - 1))))


def near_duplicates(image: Tensor, picks: Tensor, open_: Tensor | None = None) -> float:
    """The share of the picks, int64 [b], that have a near-duplicate among the other open candidates, bool [B]; all are
    open without it. `image` is that of all candidates, float [B, D]. It is told of a sample of the picks."""
    compared = image[picks[:: -(-len(picks) // COMPARED_PICKS)]]
    # Each is compared with itself, too, and does not count for that.
    alike = -((compared * compared).sum(dim=1) > NEAR_DUPLICATE).long()
    for start in range(0, len(image), SLICE):
        rows = slice(start, start + SLICE)
        near = compared @ image[rows].T > NEAR_DUPLICATE
        alike += (near if open_ is None else near & open_[rows]).sum(dim=1)
    return float((alike > 0).double().mean())
