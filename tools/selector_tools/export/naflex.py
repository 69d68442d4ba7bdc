"""Exports SigLIP 2 of any aspect (NaFlex) for one square grid of patches.

The library's forward takes patches, their grid and a mask, and resizes positions sample by sample; that cannot be
traced. On one full grid without padding it computes what the functions here compute.
"""

import math
from typing import Any

from torch import Tensor, nn

from selector_server.errors import SetupError


class _Embeddings(nn.Module):
    """Embeds patches and positions under the library's parameter names; the table of positions is that of `grid`."""

    def __init__(self, original: Any, grid: tuple[int, int], patch: int) -> None:
        super().__init__()
        self.patch_embedding: nn.Module = original.patch_embedding
        self.position_embedding: nn.Embedding = original.position_embedding
        self._grid, self._patch = grid, patch

    def forward(self, images: Tensor) -> Tensor:
        (high, wide), side = self._grid, self._patch
        patches = images.reshape(-1, images.shape[1], high, side, wide, side)
        flat = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # pixels by row, their channels innermost
        tokens: Tensor = self.patch_embedding(flat)
        return tokens + self.position_embedding.weight


def size_of(vision: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the image and patch size at which the position table is used as it is. Raises SetupError."""
    side = math.isqrt(vision.num_patches)
    if side * side != vision.num_patches:
        raise SetupError("--transformers", f"num_patches {vision.num_patches}", "must be a square number")
    return (side * vision.patch_size,) * 2, (vision.patch_size,) * 2


def set_size(vision: Any, image_size: int | None, patch_size: int | None) -> None:
    """Changes a Siglip2VisionConfig to another image or patch size. Raises SetupError."""
    (own, _), _ = size_of(vision)
    image, patch = image_size or own, patch_size or vision.patch_size
    vision.patch_size, vision.num_patches = patch, (image // patch) ** 2


def as_fixed_grid(model: Any, grid: tuple[int, int]) -> None:
    """Prepares a Siglip2Model for `encode_fixed_grid`; its state_dict keeps its names. Raises SetupError."""
    vision = model.vision_model
    if getattr(vision, "head", None) is None:
        raise SetupError("--transformers", "vision_use_head false", "the vision model must have its pooling head")
    vision.embeddings = _Embeddings(vision.embeddings, grid, vision.embeddings.patch_size)


def encode_fixed_grid(model: Any, images: Tensor) -> Tensor:
    """Does what Siglip2Model.get_image_features does, for images that fill the grid."""
    vision = model.vision_model
    hidden = vision.encoder(inputs_embeds=vision.embeddings(images), attention_mask=None).last_hidden_state
    embedding: Tensor = vision.head(vision.post_layernorm(hidden))
    return embedding
