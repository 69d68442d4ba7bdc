"""Judges a learner by pairs that it was not trained on: does it find each picture's caption, and each caption's
picture?"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.errors import SetupError
from selector_server.sampling import Embedded
from selector_tools.datasets.pairs import Pairs
from selector_tools.reference.validation import reciprocal_ranks
from selector_tools.study.own.learner import OwnLearner

AT_ONCE = 64  # pairs that are embedded together


@dataclass(frozen=True)
class Found:
    """Of the pairs held out: `rank`, the mean reciprocal rank of the own partner, of both directions; and the shares of
    pairs whose own partner stands first, from image to text and from text to image. All are 0 to 1."""

    rank: float
    image_to_text: float
    text_to_image: float


class Retrieval:
    """Ranks the different captions of `pairs` for each image, and an image of each of them for each caption. Raises
    SetupError if all pairs have one caption."""

    def __init__(self, pairs: Pairs, name: str) -> None:
        self.pairs = pairs
        self._captions = [row.tobytes() for row in pairs.tokens]
        self.captions = len(set(self._captions))
        if self.captions < 2:
            raise SetupError("--pool", f"{len(self._captions)} pairs of the {name}", "have one and the same caption")

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._captions)

    @property
    def chance(self) -> float:
        """The mean reciprocal rank of who guesses."""
        return float(np.mean(1 / np.arange(1, self.captions + 1)))

    def __call__(self, model: OwnLearner) -> float:
        return self.of(model).rank

    @torch.no_grad()
    def of(self, model: OwnLearner) -> Found:
        """Judges a learner as it is now."""
        model.eval()
        parts = []
        for start in range(0, len(self), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            both = model(torch.from_numpy(self.pairs.pixels[some]), torch.from_numpy(self.pairs.tokens[some]))
            parts.append([embeddings.cpu() for embeddings in both])
        model.train()
        image, text = (torch.cat(part) for part in zip(*parts, strict=True))
        return self.by(Embedded.normalise(image, text, 1.0, 0.0))

    def by(self, embedded: Embedded) -> Found:
        """Judges embeddings of the pairs, [n, D]."""
        swapped = Embedded(embedded.text, embedded.image, embedded.scale, embedded.bias)
        ranks: list[NDArray[np.float64]] = [reciprocal_ranks(one, self._captions) for one in (embedded, swapped)]
        first = [float((one == 1).mean()) for one in ranks]
        return Found(float(np.mean(ranks)), *first)
