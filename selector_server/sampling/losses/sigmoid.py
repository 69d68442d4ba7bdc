"""The sigmoid loss (JEST Algorithm 1): nll_ii = softplus(-logit_ii), nll_ij = softplus(logit_ij) for i != j.

The loss of a batch is a sum over pairs, so the score of a sub-batch is the sum of S_ij over its pairs, and adding i to
it adds S_ii and, for each member k, both S_ki and S_ik.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selector_server.sampling.embeddings import Embedded
from selector_server.sampling.losses.all_pairs import uniform_total
from selector_server.sampling.losses.base import SAMPLE, Chunk, LossScores, Weighted
from selector_server.sampling.losses.kernel import StripModel, strips
from selector_server.sampling.losses.strips import Sides, softplus
from selector_server.sampling.threads import spread

# The sampler's threads take so many rows of a matrix of pairs at a time.
PAIR_ROWS = 64


class SigmoidScores(LossScores):
    """Keeps one accumulator, float64 [B]; each round adds the strips of its picks to it."""

    def __init__(
        self, own: Tensor, models: Sequence[Weighted], tile_bytes: int | None = None, fused: bool = False
    ) -> None:
        super().__init__(own, models, tile_bytes, fused)
        self._strips, self._score = _Strips(models, tile_bytes, fused), own
        self._itself = torch.stack([weight * softplus(model.own_logits) for weight, model in models]).sum(dim=0)
        self._total = 0.0

    @staticmethod
    def own_losses(model: Embedded) -> Tensor:
        return softplus(-model.own_logits)

    def scores(self) -> Tensor:
        return self._score

    def add(self, chunk: Chunk) -> None:
        strip = self._strips.of(chunk)
        self._count(chunk, strip[chunk.rows])
        self._score = self._score + strip

    def finish(self, chunk: Chunk) -> float:
        picks = _Strips([(weight, model.at(chunk.rows)) for weight, model in self.models], self.tile_bytes, self.fused)
        self._count(chunk, picks.of(chunk))
        return self._total

    def uniform_total(self, picks: int, among: Tensor | None = None) -> float:
        rows = self.sample(SAMPLE, among)
        pairs = self.pairs([(weight, model.at(rows)) for weight, model in self.models])
        own = self._score if among is None else self._score[among]
        return uniform_total(self._score[rows], pairs, picks, own_mean=float(own.mean()))

    @staticmethod
    def pairs(models: Sequence[Weighted]) -> Tensor:
        texts = [(model.text * -model.scale).T for _, model in models]
        image = models[0][1].image
        count, height = len(image), PAIR_ROWS if image.device.type == "cpu" else max(1, len(image))
        one_way = image.new_zeros((count, count))

        def adder() -> Callable[[int], None]:
            room = image.new_empty((height, count))

            def add(start: int) -> None:
                rows = slice(start, min(start + height, count))
                for (weight, model), text in zip(models, texts, strict=True):
                    products = torch.mm(model.image[rows], text, out=room[: rows.stop - start]).sub_(model.bias)
                    # This is -softplus(logit).
                    torch.ops.aten.log_sigmoid.out(products, out=products)
                    one_way[rows].sub_(products, alpha=weight)

            return add

        spread(adder, range(0, count, height), image.device)
        return (one_way + one_way.T).fill_diagonal_(0.0)

    def _count(self, chunk: Chunk, strip: Tensor) -> None:
        """Adds to the total what the picks scored when they were drawn, and their pairs among each other: `strip` has
        each of those twice, and each pick with itself as a negative, also twice."""
        itself = self._itself[chunk.rows]
        self._total += float(self._score[chunk.rows].sum()) + float((strip / 2 - itself).sum())


class _Strips:
    """What picks add to each candidate's score. It keeps the candidates ready for round after round."""

    def __init__(self, models: Sequence[Weighted], tile_bytes: int | None, fused: bool) -> None:
        self._weights = [weight for weight, _ in models]
        self._signs = models[0][1].image.new_tensor(self._weights, dtype=torch.float64)
        self._tile_bytes = tile_bytes
        candidates = [model for _, model in models]
        # Candidates' own pairs stay in full precision.
        self._halves = [model.half() for model in candidates] if fused and len(candidates[0]) else None
        self._sides = Sides(candidates) if self._halves is None else None

    def of(self, chunk: Chunk) -> Tensor:
        """Sum over picks k of S_ki + S_ik for each candidate, float64 [B], every pair counted as a negative."""
        if self._sides is not None:
            return self._signs @ self._sides.softplus_sums(chunk.models, self._tile_bytes)
        assert self._halves is not None
        picks = [model.half() for model in chunk.models]
        parts = zip(self._halves, picks, self._weights, strict=True)
        return strips([StripModel(m.image, m.text, p.image, p.text, m.scale, m.bias, w) for m, p, w in parts])
