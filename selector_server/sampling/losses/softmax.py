"""The softmax loss (JEST Algorithm 3): l_i = 1/2 [lse_j(a s_ij) + lse_j(a s_ji)] - a s_ii. The bias cancels out.

A candidate's score is -a s_ii plus half the log-sum-exp over the picks so far, in both directions; as in the paper its
own pair is not among them, and what it does to the picks' own denominators is not counted. The log-sum-exps are merged
round by round: logaddexp(lse over old picks, lse over new picks) is the lse over all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses.base import SAMPLE, Chunk, LossScores, Weighted
from selector_server.sampling.losses.strips import Side, for_each_tile, softplus


class SoftmaxScores(LossScores):
    """Keeps two accumulators for each model, float64 [2, B]: the log-sum-exps over picks, in either direction. There is
    no fused kernel for them."""

    def __init__(
        self, own: Tensor, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False
    ) -> None:
        super().__init__(own, models, tile_bytes, fused)
        self._sums = [own.new_full((2, len(own)), -torch.inf) for _ in models]
        self._sides = [_sides(model) for _, model in models]
        self._picked: list[Tensor] = []

    @staticmethod
    def own_losses(model: Embedded) -> Tensor:
        return model.bias - model.own_logits

    def scores(self) -> Tensor:
        return self._scores(self.own, self._sums)

    def add(self, chunk: Chunk) -> None:
        self._picked.append(chunk.rows)
        for sums, sides, picked in zip(self._sums, self._sides, chunk.models, strict=True):
            sums.copy_(_merge(sums, _log_sums(sides, picked, self.tile_bytes)))

    def finish(self, chunk: Chunk) -> float:
        # Only the picks' own denominators matter now, and this chunk completes them.
        rows = torch.cat([*self._picked, chunk.rows])
        sums = [
            _merge(before[:, rows], _log_sums(_sides(model.at(rows)), picked, self.tile_bytes))
            for before, (_, model), picked in zip(self._sums, self.models, chunk.models, strict=True)
        ]
        return float(self._scores(self.own[rows], sums).sum())

    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        batch = self.sample(picks, among)
        rows = batch[:SAMPLE]
        models = [(weight, model.at(rows)) for weight, model in self.models]
        some = SoftmaxScores(self.own[rows], models, self.tile_bytes)
        some.add(Chunk([model.at(batch) for _, model in self.models], rows[:0]))
        return picks * float(some.scores().mean())

    def _scores(self, own: Tensor, sums: list[Tensor]) -> Tensor:
        """Own scores float64 [n] plus half of both log-sum-exps, float64 [2, n] a model; -inf stands for no picks."""
        halves = (
            weight * sum_.sum(dim=0).masked_fill(sum_[0].isneginf(), 0.0) / 2
            for (weight, _), sum_ in zip(self.models, sums, strict=True)
        )
        return own + torch.stack(list(halves)).sum(dim=0)


def _merge(old: Tensor, new: Tensor) -> Tensor:
    """log(e^old + e^new) of each element, where `old` may be -inf."""
    return new + softplus(old - new)


def _sides(candidates: Embedded) -> tuple[Side, Side]:
    """Images and texts, ready for products with picks."""
    return Side(candidates.image), Side(candidates.text)


def _log_sums(candidates: tuple[Side, Side], picked: Embedded, tile_bytes: int | None) -> Tensor:
    """The log-sum-exp over picks k of a s_ik (row 0) and of a s_ki (row 1), float64 [2, B]."""
    others = [picked.text * picked.scale, picked.image * picked.scale]
    sums = others[0].new_empty((2, candidates[0].count), dtype=torch.float64)

    def add_up(which: slice, rows: slice, products: Tensor) -> None:
        sums[which, rows] = torch.logsumexp(products, dim=2).double()

    for_each_tile(candidates, others, tile_bytes, add_up)
    return sums
