"""The sigmoid loss of a small super-batch: all pairs at once, instead of strips round by round.

A round of strips costs some tenths of a millisecond however few candidates there are. Up to MOST candidates, the pairs
are less work than that, and they tell exactly what a uniform sub-batch would score.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector_server.sampling.losses.base import Chunk, Running, Weighted

# Candidates up to which all pairs are faster, filtered by a half to four fifths; at about 1,000 they are as fast.
MOST = 768
# Bytes a pair while the pairs are made.
PAIR_BYTES = 16


def fits(candidates: int, tile_bytes: int | None) -> bool:
    """Whether so many candidates are scored at once; `tile_bytes` is a bound that somebody set."""
    return candidates <= MOST and (tile_bytes is None or PAIR_BYTES * candidates**2 <= tile_bytes)


def pairs_of(models: Sequence[Weighted]) -> Tensor:
    """S_ik + S_ki of each two different candidates, float32 [B, B], and 0 on the diagonal."""
    one_way = torch.zeros((), device=models[0][1].image.device)
    for weight, model in models:
        products = torch.mm(model.image, (model.text * -model.scale).T).sub_(model.bias)
        # -softplus(logit)
        torch.ops.aten.log_sigmoid.out(products, out=products)
        one_way = one_way - products.mul_(weight)
    return (one_way + one_way.T).fill_diagonal_(0.0)


def uniform_total(own: Tensor, pairs: Tensor, picks: int, own_mean: float | None = None) -> float:
    """Score of a uniform sub-batch of that many picks, on average: from own scores float64 [B] and `pairs_of` the
    candidates. `own_mean`, if these are a sample of more."""
    count = len(own)
    mean = float(own.mean()) if own_mean is None else own_mean
    pair_mean = float(pairs.sum(dtype=torch.float64)) / 2 / (count * (count - 1)) if count > 1 else 0.0
    return picks * mean + picks * (picks - 1) * pair_mean


class AtOnce(Running):
    """Takes own scores, float64 [B], and `pairs_of` the candidates; both stay as they are."""

    def __init__(self, models: Sequence[Weighted], own: Tensor, pairs: Tensor) -> None:
        super().__init__(models)
        self._own, self._score, self._pairs = own, own, pairs
        self._picked: list[Tensor] = []

    def scores(self) -> Tensor:
        return self._score

    def add(self, chunk: Chunk) -> None:
        self._picked.append(chunk.rows)
        self._score = self._score + self._pairs[chunk.rows].sum(dim=0, dtype=torch.float64)

    def finish(self, chunk: Chunk) -> float:
        self.add(chunk)
        rows = torch.cat(self._picked)
        # Each pair of picks is in the scores of both.
        return float((self._own[rows] + self._score[rows]).sum() / 2)

    def uniform_total(self, picks: int) -> float:
        return uniform_total(self._own, self._pairs, picks)
