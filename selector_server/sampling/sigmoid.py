"""The sigmoid loss (JEST Algorithm 1): nll_ii = softplus(-logit_ii), nll_ij = softplus(logit_ij) for i != j.

The loss of a batch is a sum over pairs, so the score of a sub-batch is the sum of S_ij over its pairs, and adding i to
it adds S_ii and, for each member k, both S_ki and S_ik.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector_server.sampling.kernel import StripModel, strips
from selector_server.sampling.running import SAMPLE, Chunk, Running, Weighted, total_of
from selector_server.sampling.strips import softplus, softplus_strips


class Sigmoid(Running):
    """One accumulator of length B; each round adds the strips of its picks."""

    def __init__(self, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False) -> None:
        super().__init__(models, tile_bytes, fused)
        # What strips are made of: own pairs stay in full precision.
        self._candidates = [(weight, model.half()) for weight, model in models] if fused else models
        own = [(weight, model.own_logits) for weight, model in models]
        self._score = torch.stack([weight * softplus(-logits) for weight, logits in own]).sum(dim=0)
        self._itself = torch.stack([weight * softplus(logits) for weight, logits in own]).sum(dim=0)
        self._total = 0.0

    def scores(self) -> Tensor:
        return self._score

    def add(self, chunk: Chunk) -> None:
        strip = self._strip(self._candidates, chunk)
        self._count(chunk, strip[chunk.rows])
        self._score = self._score + strip

    def finish(self, chunk: Chunk) -> float:
        self._count(chunk, self._strip([(weight, model.at(chunk.rows)) for weight, model in self._candidates], chunk))
        return self._total

    def uniform_total(self, picks: int) -> float:
        rows = self.sample(SAMPLE)
        own = float(self._score[rows].sum())
        among = total_of(Sigmoid, [(weight, model.at(rows)) for weight, model in self.models], self.tile_bytes)
        pairs = len(rows) * (len(rows) - 1)
        pair_mean = (among - own) / pairs if pairs else 0.0
        return picks * float(self._score.mean()) + picks * (picks - 1) * pair_mean

    def _strip(self, candidates: Sequence[Weighted], chunk: Chunk) -> Tensor:
        """Sum over picks k of S_ki + S_ik for each candidate, every pair counted as a negative."""
        pairs = list(zip(candidates, chunk.models, strict=True))
        if self.fused and len(candidates[0][1]):
            halves = [(weight, model, picked.half()) for (weight, model), picked in pairs]
            return strips([StripModel(m.image, m.text, p.image, p.text, m.scale, m.bias, w) for w, m, p in halves])
        parts = [weight * softplus_strips(model, picked, self.tile_bytes) for (weight, model), picked in pairs]
        return torch.stack(parts).sum(dim=0)

    def _count(self, chunk: Chunk, strip: Tensor) -> None:
        """Adds what the picks scored when drawn, and their pairs among each other: `strip` has each of those twice,
        and each pick with itself as a negative, twice."""
        itself = self._itself[chunk.rows]
        self._total += float(self._score[chunk.rows].sum()) + float((strip / 2 - itself).sum())
