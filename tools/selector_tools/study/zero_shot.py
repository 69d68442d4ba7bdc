"""Judges a learner by pictures of families that nothing was trained on."""

import torch
from tokenizers import Tokenizer

from selector_tools.datasets.dataset import Dataset
from selector_tools.datasets.pairs import tokenise
from selector_tools.study.model import SmallSigLip


class ZeroShot:
    """Measures the top-1 accuracy of naming held-out pictures among all class names, 0 to 1."""

    def __init__(self, data: Dataset, tokenizer: Tokenizer) -> None:
        named = data.labels >= 0
        self._pixels = torch.from_numpy(data.evaluation.pixels[named][..., None])
        self._labels = torch.from_numpy(data.labels[named])
        self._names = torch.from_numpy(tokenise(data.class_names, tokenizer))

    @torch.no_grad()
    def __call__(self, model: SmallSigLip) -> float:
        names = model(self._pixels[:1], self._names)[1]
        images = model(self._pixels, self._names[:1])[0]
        return float(((images @ names.T).argmax(dim=1) == self._labels).float().mean())
