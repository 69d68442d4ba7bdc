"""Flexi-JEST's training step for torch (Evans et al. 2024, section 3.3): a random half of each sub-batch is trained
at full resolution, the rest as the scorer saw it, so that scores at low resolution stay good.

    flexi = MixedResolution(model.encode_image, at_size(model.encode_image, 112))
    loss = sigmoid_loss(flexi(images, step), model.encode_text(texts))  # one loss over all b pairs

This module imports torch; `selector_client` itself does not import it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

Encoder = Callable[[Tensor], Tensor]


def at_size(encode_image: Encoder, size: int | tuple[int, int]) -> Encoder:
    """Returns `encode_image` for images [n, C, H, W] that are made smaller first, so that each pixel of the result is
    the mean of those it covers."""

    def encode(images: Tensor) -> Tensor:
        return encode_image(interpolate(images, size, mode="area"))

    return encode


class MixedResolution:
    """Embeds images of one sub-batch, a random share of them at low resolution.

    `encode_full` and `encode_low` map images [n, C, H, W] to embeddings [n, D] and are both given images at full
    resolution: `encode_low` resizes them itself (see `at_size`), or cuts larger patches. The parts depend on `seed`
    and the step alone; give each data-parallel rank a seed of its own.

    Under DistributedDataParallel or FSDP call it within the wrapped module's forward. Batch norm sees two batches.
    """

    def __init__(self, encode_full: Encoder, encode_low: Encoder, *, share: float = 0.5, seed: int = 0) -> None:
        """Embeds `share` of each sub-batch, rounded to whole examples, at low resolution. Raises ValueError."""
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; must lie between 0 and 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; must not be negative")
        self._encode_full, self._encode_low = encode_full, encode_low
        self._share, self._seed = share, seed

    def low_picks(self, picks: int) -> int:
        """Returns how many of `picks` examples are at low resolution."""
        return round(self._share * picks)

    def parts(self, picks: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns which rows of the step's sub-batch are at full and which at low resolution; together they are 0 to
        picks - 1."""
        rows = np.random.default_rng([self._seed, step]).permutation(picks)
        low = self.low_picks(picks)
        return rows[low:], rows[:low]

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Embeds images [b, C, H, W]. Returns differentiable embeddings [b, D], of which row i is that of image i."""
        embedded: list[Tensor] = []
        order: list[Any] = []
        encoders = (self._encode_full, self._encode_low)
        for rows, encode in zip(self.parts(len(images), step), encoders, strict=True):
            if len(rows):
                embedded.append(encode(images[torch.from_numpy(rows).to(images.device)]))
                order.append(rows)
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        together = torch.cat(embedded)
        return together[back.to(together.device)]
