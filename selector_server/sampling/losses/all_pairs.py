"""The scores of a small super-batch: all pairs at once, instead of strips round by round.

A round of strips costs some tenths of a millisecond however few candidates there are. Up to MOST candidates, computing
all pairs is less work than that, and it tells exactly what a uniform sub-batch would score.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector_server.sampling.losses.base import Chunk, RunningScores, Weighted

# Up to so many candidates all pairs are faster, if a half to four fifths are filtered out; at about 1,000 they are as
# fast as strips.
MOST = 768
# Computing the pairs takes so many bytes for each of them.
PAIR_BYTES = 16


def fits(candidates: int, tile_bytes: int | None) -> bool:
    """Whether so many candidates are scored at once; `tile_bytes` is a bound that somebody set."""
    return candidates <= MOST and (tile_bytes is None or PAIR_BYTES * candidates**2 <= tile_bytes)


def uniform_total(own: Tensor, pairs: Tensor, picks: int, own_mean: float | None = None) -> float:
    """The mean score of a uniform sub-batch of that many picks, for own scores float64 [B] and pairs float32 [B, B] as
    LossScores.pairs has them. If these candidates are a sample of more, `own_mean` is the mean over all of them.

    E[sum of S_ij over i, j in the sub-batch] = b E[S_ii] + b (b - 1) / 2 E[S_ij + S_ji].
    """
    count = len(own)
    mean = float(own.mean()) if own_mean is None else own_mean
    pair_mean = float(pairs.sum(dtype=torch.float64)) / 2 / (count * (count - 1)) if count > 1 else 0.0
    return picks * mean + picks * (picks - 1) * pair_mean


class AllPairs(RunningScores):
    """The scores by any loss that is a sum over pairs: score_i = own_i + sum over picks k of pairs_ki."""

    def __init__(self, own: Tensor, models: Sequence[Weighted], pairs: Tensor) -> None:
        """`own` are the candidates' own scores, float64 [B], and `pairs` what LossScores.pairs computes for them,
        float32 [B, B]; both stay as they are."""
        super().__init__(own, models)
        self._score, self._pairs = own, pairs
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
        return float((self.own[rows] + self._score[rows]).sum() / 2)

    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        if among is None:
            return uniform_total(self.own, self._pairs, picks)
        return uniform_total(self.own[among], self._pairs[among][:, among], picks)
