"""Training images are moved, cropped and mirrored at random, so that a small pool is not learnt by heart."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True)
class Augmentation:
    """Every image is cropped to a share of its area between `crop` and 1, at a random place and at its own aspect, and
    brought back to its size; moved by up to `shift` whole pixels along each axis; and mirrored with a chance of one
    half if `flip` is set. What comes in from outside repeats the nearest edge."""

    shift: int = 0
    crop: float = 1.0
    flip: bool = False

    @property
    def off(self) -> bool:
        """Whether images stay as they are."""
        return self == Augmentation()

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Takes uint8 [B, H, W, C] to the same shape. `rng` draws the same numbers whatever is switched on."""
        count, height, width, _ = pixels.shape
        side = np.sqrt(rng.uniform(self.crop, 1.0, count))
        places = rng.random((count, 2))
        moves = rng.integers(-self.shift, self.shift, (count, 2), endpoint=True)
        mirrored = (rng.random(count) < 0.5) & self.flip
        # Positions are those of affine_grid: -1 and 1 are an axis's two ends, and rows of `maps` are x, then y.
        centres = (2 * places - 1) * (1 - side)[:, None] + 2 * moves / (width, height)
        maps = np.zeros((count, 2, 3), np.float32)
        maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = np.where(mirrored, -side, side), side, centres
        images = pixels.permute(0, 3, 1, 2).float()
        grid = affine_grid(torch.from_numpy(maps).to(pixels.device), list(images.shape), align_corners=False)
        out = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out.round().to(torch.uint8).permute(0, 2, 3, 1)
