"""How much the pairs weigh in what a joint rule goes by, beside each candidate's own score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from selector_client import Selection
from torch import Tensor
from torch.nn.functional import softplus

from selector_tools.study.feeds import Source
from selector_tools.study.flexi_vit import FULL, seen_as
from selector_tools.study.learner import device_of
from selector_tools.study.model import SmallSigLip

# The criteria that each model's losses count for.
BY_LEARNER, BY_REFERENCE = ("learnability", "hard-learner"), ("learnability", "easy-reference")
LOOKS = 4  # So often is it measured on the way, the last time at the last step.


@dataclass
class PairVariance:
    """Measures it while a learner trains, by the learner and the reference as they are: `shares` holds (step, share).

    A share is the variance, over a super-batch's candidates, of what their pairs with all picks add to their scores,
    divided by the sum of that and the variance of their own scores."""

    learner: SmallSigLip
    reference: SmallSigLip
    source: Source
    settings: Mapping[str, Any]
    steps: int
    shares: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, step: int, entries: NDArray[np.int64], selection: Selection) -> None:
        """Takes the super-batch and what was picked of it for a step, which counts from 0."""
        if (step + 1) % max(1, self.steps // LOOKS):
            return
        batch, place = self.source.at(entries), device_of(self.learner)
        pixels, tokens = (torch.from_numpy(batch[name]).to(place) for name in ("images", "texts"))
        picks = torch.from_numpy(np.asarray(selection.indices, dtype=np.int64)).to(place)
        own = pairs = torch.zeros(len(entries), device=place)
        alone = self.settings.get("criterion", "learnability")
        joint = self.settings.get("pair_criterion", alone)
        for model, sign, counts in ((self.learner, 1, BY_LEARNER), (self.reference, -1, BY_REFERENCE)):
            with seen_as(model, FULL):
                diagonal, sums = _losses(model, pixels, tokens, picks)
            own = own + sign * diagonal * (alone in counts)
            pairs = pairs + sign * sums * (joint in counts)
        weighed = float(pairs.var())
        whole = weighed + float(own.var())
        self.shares.append((step + 1, weighed / whole if whole else 0.0))  # A warm learner begins as its reference.


@torch.no_grad()
def _losses(model: SmallSigLip, pixels: Tensor, tokens: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each candidate's own sigmoid loss, float [B], and the sum of those of its picture with the picks'
    captions and of its caption with their pictures, but for its own, float [B]."""
    image, text = model(pixels, tokens)
    scale, bias = model.log_scale.exp(), model.bias
    own = scale * (image * text).sum(dim=1) + bias
    sums = softplus(scale * image @ text[picks].T + bias).sum(dim=1)
    sums += softplus(scale * text @ image[picks].T + bias).sum(dim=1)
    sums[picks] -= 2 * softplus(own[picks])
    return softplus(-own), sums
