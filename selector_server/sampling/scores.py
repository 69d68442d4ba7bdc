"""What a candidate, and a pair of candidates, is worth: losses compared by a criterion.

Scores are in nats, without the gain. The loss is the sigmoid loss in SigLIP's code convention,
logit_ij = scale * <image_i, text_j> + bias, nll_ii = softplus(-logit_ii), nll_ij = softplus(logit_ij) for i != j
(JEST Eq. 2 writes the bias with the opposite sign). The loss of a batch is a sum over pairs, so the score of a
sub-batch is the sum of S_ij over its pairs.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

# Pairs whose losses are held at once: float32 tiles of 16 MiB.
TILE_PAIRS = 1 << 22
# Largest logit scale and bias, either sign: beyond it, sums of float32 losses could overflow.
MAX_LOGIT = 1e6
# Candidates whose pairs estimate what a uniform sub-batch would score.
SAMPLE = 1024


class Criterion(Enum):
    """Which losses make the score (JEST section 2.1): the weights of learner and reference."""

    value: tuple[int, int]

    LEARNABILITY = (1, -1)
    EASY_REFERENCE = (0, -1)
    HARD_LEARNER = (1, 0)

    @property
    def needs_learner(self) -> bool:
        return self.value[0] != 0

    @property
    def needs_reference(self) -> bool:
        return self.value[1] != 0


@dataclass(frozen=True)
class Embedded:
    """A super-batch as one model sees it: image and text, float [B, D] with rows of length one, and that model's
    own logit scale and bias."""

    image: Tensor
    text: Tensor
    scale: float
    bias: float

    @staticmethod
    def normalise(image: Tensor, text: Tensor, scale: float, bias: float) -> "Embedded":
        """From any float embeddings: rows z / (|z| + 1e-8) in float32, as in big_vision's two towers."""
        image, text = (
            z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + 1e-8) for z in (image.float(), text.float())
        )
        return Embedded(image, text, scale, bias)

    def at(self, indices: Tensor) -> "Embedded":
        return Embedded(self.image[indices], self.text[indices], self.scale, self.bias)

    def own_logits(self) -> Tensor:
        """logit_ii, float64 [B]."""
        return (self.image.double() * self.text.double()).sum(dim=1) * self.scale + self.bias


class Scores(Protocol):
    """What a policy may ask about a super-batch of `size` candidates."""

    @property
    def size(self) -> int:
        """B."""

    def own(self) -> Tensor:
        """S_ii, the score of each candidate's own pair, float64 [B]."""

    def total(self, picks: Tensor) -> float:
        """Sum of S_ij over all pairs among `picks`, int64 [b]."""

    def expected_total(self, picks: int) -> float:
        """Mean of `total` over uniform sub-batches of that many picks."""


@dataclass(frozen=True)
class ScalarScores:
    """One score per candidate and none for pairs, float [B]: the RHO-LOSS setting."""

    values: Tensor

    @property
    def size(self) -> int:
        return len(self.values)

    def own(self) -> Tensor:
        return self.values.double()

    def total(self, picks: Tensor) -> float:
        return float(self.own()[picks].sum())

    def expected_total(self, picks: int) -> float:
        return float(self.own().mean()) * picks


@dataclass(frozen=True)
class PairScores:
    """Scores of all pairs, computed tile by tile: a B x B matrix is never stored.

    `tile_pairs` bounds the memory, not the result.
    """

    criterion: Criterion
    learner: Embedded | None
    reference: Embedded | None
    tile_pairs: int = TILE_PAIRS

    def __post_init__(self) -> None:
        if not self._weighted():
            raise ValueError(f"criterion {self.criterion.name} needs a model that is not given")

    @property
    def size(self) -> int:
        return len(self._weighted()[0][1].image)

    def own(self) -> Tensor:
        return torch.stack([w * softplus(-model.own_logits()) for w, model in self._weighted()]).sum(dim=0)

    def cross(self, chosen: Tensor) -> Tensor:
        """Sum over k in `chosen` of S_ki + S_ik, k != i, for every candidate i: float64 [B].

        Both directions: adding i to a sub-batch adds its row and its column to the sub-matrix.
        """
        models = [(w, model, model.at(chosen)) for w, model in self._weighted()]
        total = torch.zeros(self.size, dtype=torch.float64, device=chosen.device)
        height = max(1, self.tile_pairs // len(chosen))
        for start in range(0, self.size, height):
            rows = slice(start, start + height)
            for weight, model, picked in models:
                for candidates, others in ((model.text, picked.image), (model.image, picked.text)):
                    logits = (candidates[rows] @ others.T).mul_(model.scale).add_(model.bias)
                    total[rows] += weight * softplus(logits).sum(dim=1)
        for weight, _, picked in models:
            total[chosen] -= 2 * weight * softplus(picked.own_logits())
        return total

    def within(self, picks: Tensor) -> float:
        """Sum of S_ij over ordered pairs i != j among `picks`."""
        among = PairScores(
            self.criterion,
            self.learner and self.learner.at(picks),
            self.reference and self.reference.at(picks),
            self.tile_pairs,
        )
        return float(among.cross(torch.arange(len(picks), device=picks.device)).sum()) / 2

    def total(self, picks: Tensor) -> float:
        return float(self.own()[picks].sum()) + self.within(picks)

    def expected_total(self, picks: int) -> float:
        """Estimated from the pairs among at most SAMPLE candidates, the same ones at every call."""
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))[:SAMPLE]
        pairs = len(order) * (len(order) - 1)
        pair_mean = self.within(order.to(self._weighted()[0][1].image.device)) / pairs if pairs else 0.0
        return picks * float(self.own().mean()) + picks * (picks - 1) * pair_mean

    def _weighted(self) -> list[tuple[int, Embedded]]:
        """The models that the criterion needs, with their weights; empty if one of them is missing."""
        pairs = list(zip(self.criterion.value, (self.learner, self.reference), strict=True))
        needed = [(weight, model) for weight, model in pairs if weight]
        return [(w, m) for w, m in needed if m is not None] if all(m is not None for _, m in needed) else []
