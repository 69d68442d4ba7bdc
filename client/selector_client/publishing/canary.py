"""Samples that travel with the weights, by which a sidecar proves that it has the right ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from selector_proto.weights.layout import CANARY, MAX_CANARY


@dataclass(frozen=True)
class Canary:
    """Samples, and the embeddings that the trainer's model computed of them with the weights it publishes. The sidecar
    serves the weights only if it comes to the same embeddings. `pixels` are uint8 [n, H, W, C] of the bundle's size and
    `tokens` int [n, T], as they are sent to be selected from; `image` and `text` are float [n, D]; n is 1 to 16."""

    pixels: ArrayLike
    tokens: ArrayLike
    image: ArrayLike
    text: ArrayLike

    def tensors(self) -> dict[str, Any]:
        """Returns the arrays as they travel beside the weights. Raises ValueError if their lengths do not fit."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        if not 1 <= len(arrays["pixels"]) <= MAX_CANARY or len({len(array) for array in arrays.values()}) != 1:
            raise ValueError(
                f"canary has {[len(a) for a in arrays.values()]} samples; must be 1 to {MAX_CANARY}, all the same"
            )
        dtypes = {"pixels": np.uint8, "tokens": np.int64, "image": np.float32, "text": np.float32}
        return {CANARY + name: array.astype(dtypes[name]) for name, array in arrays.items()}
