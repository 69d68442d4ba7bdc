"""A small vision transformer that sees pictures at several resolutions with one set of weights (FlexiViT)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from selector_proto.resize import patch_matrix, resize_matrix
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from selector_tools.study.model import SIDE, SmallSigLip

WIDTH, DEPTH, HEADS = 64, 3, 4
KEPT = (0, 2, 5, 7)  # these rows and columns of tokens are left when others are dropped; they are spread evenly


@dataclass(frozen=True)
class Form:
    """A way to see a picture of SIDE x SIDE: its patches' side, the side it is first resized to, and whether most
    tokens are dropped."""

    name: str
    patch: int
    side: int = SIDE
    dropping: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches in the whole picture."""
        return self.side // self.patch, self.side // self.patch

    @property
    def tokens(self) -> int:
        """How many tokens the transformer is given."""
        return len(KEPT) ** 2 if self.dropping else self.grid[0] * self.grid[1]

    @property
    def flops(self) -> int:
        """FLOPs of the image tower for one picture: two for each multiplication in its matrix products."""
        per_token = self.patch**2 * WIDTH + DEPTH * (12 * WIDTH**2 + 2 * self.tokens * WIDTH)
        return 2 * self.tokens * per_token


FULL = Form("full", 4)
PATCH_8 = Form("patch 8", 8)
SIDE_16 = Form("16 px", 4, side=16)
DROPPED = Form("tokens dropped", 4, dropping=True)
LOW = (PATCH_8, SIDE_16, DROPPED)


class FlexiSigLip(SmallSigLip):
    """The studies' SigLIP with a vision transformer for pictures. Its kernel and positions fit the form `built` and are
    resized for other forms inside the forward pass, so that gradients reach the stored ones."""

    def __init__(self, vocabulary: int, seen: Sequence[Form] = (FULL,), built: Form = FULL) -> None:
        """A batch of pictures is split among the forms `seen`, in equal and contiguous parts."""
        super().__init__(vocabulary)
        del self.stem, self.conv
        self.seen: Sequence[Form] = seen
        self.built = built
        self.embed = nn.Conv2d(1, WIDTH, built.patch, stride=built.patch)
        # They start as large as patches are: with the usual 0.02, zero-shot after 600 steps at patch 8 is 1.3 %
        # instead of 2.2 %.
        self.positions = nn.Parameter(torch.randn(built.tokens, WIDTH))
        self.blocks = nn.Sequential(*(_block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, self.project.out_features)

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 1, SIDE, SIDE], normalised by MEAN and STD, and returns [B, D]."""
        if len(self.seen) == 1:  # a batch that is not split may have any size once the model is exported
            return self._encode(images, self.seen[0])
        parts = images.chunk(len(self.seen))
        return torch.cat([self._encode(part, form) for part, form in zip(parts, self.seen, strict=True)])

    def _encode(self, images: Tensor, form: Form) -> Tensor:
        if form.side != SIDE:
            images = interpolate(images, (form.side, form.side), mode="bilinear", antialias=True)
        tokens = conv2d(images, self._kernel(form), self.embed.bias, stride=form.patch).flatten(2).mT
        tokens = tokens + self._positions(form)
        if form.dropping:
            tokens = tokens[:, [row * form.grid[1] + column for row, column in product(KEPT, KEPT)]]
        out: Tensor = self.project(self.norm(self.blocks(tokens)).mean(dim=1))
        return out

    def _kernel(self, form: Form) -> Tensor:
        """Returns the kernel for this form's patches, float [WIDTH, 1, patch, patch]."""
        size, to = ((patch, patch) for patch in (self.built.patch, form.patch))
        resize = self._matrix(patch_matrix(size, to, "bilinear", False))
        return (self.embed.weight.flatten(2) @ resize.T).view(WIDTH, 1, form.patch, form.patch)

    def _positions(self, form: Form) -> Tensor:
        """Returns the positions for this form's grid, float [rows * columns, WIDTH]."""
        return self._matrix(resize_matrix(self.built.grid, form.grid, "bilinear", True)) @ self.positions

    def _matrix(self, values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.positions.device)


def _block() -> nn.Module:
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


@contextmanager
def seen_as(model: SmallSigLip, *forms: Form) -> Iterator[None]:
    """Has a transformer see pictures in these forms until the block ends; other models see them as always."""
    if not isinstance(model, FlexiSigLip):
        yield
        return
    before, model.seen = model.seen, forms
    try:
        yield
    finally:
        model.seen = before
