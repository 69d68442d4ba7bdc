"""Keeps picks apart: a candidate is not picked whose image or text is too much like that of a pick (docs/adr/0021).

How much alike two of them are is the cosine of their embeddings by the reference.
"""

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses.strips import Side, for_each_tile


class Apart:
    """Says which of B candidates are too much like picks: those whose cosine with one exceeds `limit`."""

    def __init__(self, reference: Embedded, limit: float, tile_bytes: int | None = None) -> None:
        """`reference` are the candidates as the reference sees them."""
        self._sides, self._tile_bytes, self.limit = [Side(reference.image), Side(reference.text)], tile_bytes, limit
        self._near = torch.zeros((2, len(reference)), dtype=torch.bool, device=reference.image.device)

    @property
    def near(self) -> Tensor:
        """Which candidates are too much like a pick so far, by image or text, bool [B]."""
        return self._near.any(dim=0)

    def add(self, picks: Embedded) -> None:
        """Takes these picks into account."""

        def compare(which: slice, rows: slice, cosines: Tensor) -> None:
            self._near[which, rows] |= (cosines > self.limit).any(dim=2)

        for_each_tile(self._sides, [picks.image, picks.text], self._tile_bytes, compare)

    def first(self, offered: Embedded, shares: Tensor, left: Tensor) -> Tensor:
        """Goes through what is `offered`, in order, and keeps what is not too much like one kept before, as many of
        each share as are `left` of it, int64 [R]. `shares`, int64 [m], says of which one each is. Returns the rows of
        those that are kept, int64 [n]."""
        near = (offered.image @ offered.image.T > self.limit) | (offered.text @ offered.text.T > self.limit)
        return first_of_each(shares, left, near)


def first_of_each(shares: Tensor, left: Tensor, near: Tensor | None = None) -> Tensor:
    """The rows of the first of each share, as many as are `left` of it. A row that is `near` to one kept before, bool
    [m, m], is passed over."""
    quota, rows = left.tolist(), []
    alike = torch.zeros(len(shares), dtype=torch.bool).numpy()
    nears = None if near is None else near.cpu().numpy()
    for row, share in enumerate(shares.tolist()):
        if quota[share] and not alike[row]:
            rows.append(row)
            quota[share] -= 1
            if nears is not None:
                alike |= nears[row]
    return torch.tensor(rows, dtype=torch.int64, device=shares.device)
