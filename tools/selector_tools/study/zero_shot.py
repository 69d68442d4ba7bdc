"""Judges a learner by pictures of families that nothing was trained on."""

from collections.abc import Collection

import torch
from tokenizers import Tokenizer

from selector_tools.datasets.dataset import CLASS_SIZE, Pictures, classes
from selector_tools.datasets.pairs import tokenise
from selector_tools.study.learner import device_of
from selector_tools.study.model import SmallSigLip

AT_ONCE = 4096  # pictures that are embedded together


class ZeroShot:
    """Measures the top-1 accuracy of naming held-out pictures among all class names, 0 to 1. A class is a concept that
    `least` of the pictures have, or more."""

    def __init__(self, pictures: Pictures, tokenizer: Tokenizer, least: int = CLASS_SIZE) -> None:
        self.names, labels = classes(pictures.concepts, least)
        named = labels >= 0
        self._labels = torch.from_numpy(labels[named])
        self._pixels = torch.from_numpy(pictures.pixels[named][..., None])
        self._names = torch.from_numpy(tokenise(self.names, tokenizer))

    def __len__(self) -> int:
        """The number of pictures that have a class."""
        return len(self._labels)

    def __call__(self, model: SmallSigLip) -> float:
        return float(self._right(model).float().mean())

    def apart(self, model: SmallSigLip, known: Collection[str]) -> dict[str, float | None]:
        """Returns the accuracy of pictures whose class is among the `known` ones, and of the others."""
        mask = self._among(known)
        right = self._right(model).float()
        return {
            name: float(right[some].mean()) if some.any() else None
            for name, some in (("known", mask), ("unknown", ~mask))
        }

    def count(self, known: Collection[str]) -> int:
        """Returns how many pictures have a class among the `known` ones."""
        return int(self._among(known).sum())

    def _among(self, known: Collection[str]) -> torch.Tensor:
        """Returns which pictures have a class among the `known` ones, bool [n]."""
        return torch.tensor([name in known for name in self.names])[self._labels]

    @torch.no_grad()
    def _right(self, model: SmallSigLip) -> torch.Tensor:
        """Returns which pictures are named right, bool [n]."""
        place = device_of(model)
        texts = self._names.to(place)
        names = model(self._pixels[:1].to(place), texts)[1]
        seen = (model(part.to(place), texts[:1])[0] @ names.T for part in torch.split(self._pixels, AT_ONCE))
        return torch.cat([logits.argmax(dim=1).cpu() for logits in seen]) == self._labels
