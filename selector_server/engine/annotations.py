"""What a request says of its candidates for people who look on. No selection depends on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Annotations:
    """Of B candidates, as far as somebody may be shown it: `ids` as the reference cache has them, `captions` in UTF-8,
    `tags` as integers [B] or in UTF-8 (an empty one is none), and pictures that came as `pixels`, uint8 [B, H, W, C].
    What is not there is empty or None. `fallbacks` is how many batches the trainer drew uniformly so far, if it says
    so; `trainer` tells trainers apart, as far as that is possible."""

    ids: Sequence[bytes] = ()
    captions: Sequence[bytes] = ()
    tags: NDArray[np.integer[Any]] | Sequence[bytes] = ()
    pixels: NDArray[np.uint8] | None = None
    fallbacks: int | None = None
    trainer: str = ""

    @staticmethod
    def joined(parts: Sequence["Annotations"]) -> "Annotations":
        """Those of all ranks, in their order; what one lacks, all lack. Pixels are left to what models are shown."""
        told = [one.fallbacks for one in parts if one.fallbacks is not None]
        together: dict[str, Any] = {}
        for name in ("ids", "captions", "tags"):
            columns = [getattr(one, name) for one in parts]
            alike = len({type(column) for column in columns}) == 1 and all(len(column) for column in columns)
            arrays = alike and isinstance(columns[0], np.ndarray)
            listed = [entry for column in columns for entry in column] if alike else ()
            together[name] = np.concatenate(columns) if arrays else listed
        return Annotations(**together, fallbacks=sum(told) if told else None, trainer=parts[0].trainer)


NOTHING = Annotations()
