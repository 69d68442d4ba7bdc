"""Embeddings as requests bring them: arrays of numpy, which may be views into a payload."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# So many rows are compared at once.
_SLICE = 4096


@dataclass(frozen=True)
class ModelEmbeddings:
    """One model's float [B, D] embeddings, its logit scale and its logit bias."""

    image: Floats
    text: Floats
    scale: float
    bias: float

    def __len__(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """The bytes of both arrays."""
        return self.image.nbytes + self.text.nbytes

    def at(self, rows: NDArray[np.int64]) -> "ModelEmbeddings":
        """The candidates of these rows, int64 [n]. Nothing is copied if they are all."""
        return self if len(rows) == len(self) else replace(self, image=self.image[rows], text=self.text[rows])

    def cosines(self) -> NDArray[np.float64]:
        """The cosine of each candidate's image and text, float64 [B]."""
        return cosines(self.image, self.text)

    @staticmethod
    def joined(models: Sequence["ModelEmbeddings | None"]) -> "ModelEmbeddings | None":
        """Those of several ranks, one behind the other; None if there are none."""
        given = [model for model in models if model is not None]
        if not given:
            return None
        image, text = (np.concatenate([getattr(model, side) for model in given]) for side in ("image", "text"))
        return replace(given[0], image=image, text=text)


def cosines(image: Floats, text: Floats) -> NDArray[np.float64]:
    """The cosine of each row of `image` and `text`, float [n, D], in float64 [n]."""
    found = np.empty(len(image))
    for start in range(0, len(image), _SLICE):
        rows = slice(start, start + _SLICE)
        one, other = image[rows].astype(np.float64), text[rows].astype(np.float64)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found[rows] = np.einsum("nd,nd->n", one, other) / np.maximum(lengths, 1e-30)
    return found
