"""A super-batch as one model sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

# Logit scale and bias may be so large, with either sign: beyond it, sums of float32 losses could overflow.
MAX_LOGIT = 1e6
# The own pairs of so many candidates are multiplied at once.
SLICE = 4096


@dataclass(frozen=True)
class Embedded:
    """Image and text embeddings, float [B, D] with rows of length one, and the model's own logit scale and bias.

    logit_ij = scale * <image_i, text_j> + bias, as in SigLIP's code; JEST Eq. 2 writes the bias with the opposite sign.
    """

    image: Tensor
    text: Tensor
    scale: float
    bias: float

    @staticmethod
    def normalise(image: Tensor, text: Tensor, scale: float, bias: float) -> "Embedded":
        """From any float embeddings, [B, D], makes rows z / (|z| + 1e-8) in float32, as in big_vision's two towers."""
        image, text = (
            z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + 1e-8) for z in (image.float(), text.float())
        )
        return Embedded(image, text, scale, bias)

    def __len__(self) -> int:
        """B, the number of candidates."""
        return len(self.image)

    def at(self, indices: Tensor) -> "Embedded":
        """The candidates of these indices, int64 [n]."""
        return Embedded(self.image[indices], self.text[indices], self.scale, self.bias)

    @staticmethod
    def joined(parts: Sequence["Embedded"]) -> "Embedded":
        """Those of all parts, one behind the other; scale and bias are the first's."""
        image, text = (torch.cat([getattr(part, side) for part in parts]) for side in ("image", "text"))
        return replace(parts[0], image=image, text=text)

    def half(self) -> "Embedded":
        """The same in bfloat16, as the fused kernel takes it."""
        return Embedded(self.image.bfloat16(), self.text.bfloat16(), self.scale, self.bias)

    @cached_property
    def own_logits(self) -> Tensor:
        """logit_ii, float64 [B]. It is computed once."""
        # It is done in slices: the products of the whole would be most of the sampler's memory.
        sides = zip(torch.split(self.image, SLICE), torch.split(self.text, SLICE), strict=True)
        products = [(image * text).sum(dim=1, dtype=torch.float64) for image, text in sides]
        return torch.cat(products) * self.scale + self.bias
