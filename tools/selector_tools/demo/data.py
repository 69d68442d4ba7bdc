"""Turns pictures and captions into the arrays that trainer and sidecar take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordLevelTrainer

from selector_tools.demo.model import MAX_TOKENS, PAD, SmallSigLip
from selector_tools.demo.pool import DemoData, IconSet

VOCABULARY = 8000
RUN = 32  # neighbours that are read together


def make_tokenizer(captions: Sequence[str], path: Path) -> Tokenizer:
    """Returns a word-level tokenizer of the most frequent words, and saves it in `path` for the bundles."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))  # noqa: S106 - a word, not a password
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = ["[PAD]", "[UNK]"]
    tokenizer.train_from_iterator(captions, WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=special))
    tokenizer.save(str(path))
    return tokenizer


@dataclass(frozen=True)
class Pairs:
    """Pairs as arrays: `pixels` uint8 [n, 32, 32, 1] and `tokens` int64 [n, T]."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]

    @staticmethod
    def of(icons: IconSet, captions: Sequence[str], tokenizer: Tokenizer) -> "Pairs":
        return Pairs(icons.pixels[..., None], tokenise(captions, tokenizer))

    def at(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Returns the pairs of these rows as a super-batch or a batch; the rows are their ids."""
        return {"images": self.pixels[rows], "texts": self.tokens[rows], "ids": rows}


def tokenise(captions: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    tokens = np.full((len(captions), MAX_TOKENS), PAD, np.int64)
    for row, encoding in zip(tokens, tokenizer.encode_batch_fast(list(captions)), strict=True):
        ids = encoding.ids[:MAX_TOKENS]
        row[: len(ids)] = ids
    return tokens


def draws(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws `size` different rows of `count` again and again without end, in shuffled epochs."""
    # The stream must differ from the one that shuffles captions, or the first epoch begins with all shuffled ones.
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(count)
    cursor = 0
    while True:
        if cursor + size > count:
            order, cursor = rng.permutation(count), 0
        yield order[cursor : cursor + size]
        cursor += size


def stored_order(icons: IconSet) -> NDArray[np.int64]:
    """Returns the rows, int64 [n], as a crawl of the families would have stored them: icons of one hand follow one
    another, and among these the icons of one concept."""
    return np.lexsort((icons.concepts, icons.families)).astype(np.int64)


def runs(order: NDArray[np.int64], size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws super-batches of `size` different rows without end, as shards give them that are read in random order: each
    one has the next `size / RUN` runs of neighbours in `order`. Every epoch cuts the runs elsewhere, and drops what
    fills none. Raises ValueError if `order` does not hold one super-batch wherever it is cut."""
    at_once = size // RUN
    if size % RUN or size < RUN or len(order) < size + RUN - 1:
        raise ValueError(f"super-batch is {size}; must be a multiple of {RUN} and at most {len(order) - RUN + 1}")
    rng = np.random.default_rng([seed, 1])
    while True:
        start = int(rng.integers(RUN))
        whole = order[start : start + (len(order) - start) // RUN * RUN].reshape(-1, RUN)
        shuffled = rng.permutation(len(whole))
        for first in range(0, len(whole) - at_once + 1, at_once):
            yield whole[shuffled[first : first + at_once]].ravel()


class ZeroShot:
    """Measures the top-1 accuracy of naming held-out pictures among all class names, 0 to 1."""

    def __init__(self, data: DemoData, tokenizer: Tokenizer) -> None:
        named = data.labels >= 0
        self._pixels = torch.from_numpy(data.evaluation.pixels[named][..., None])
        self._labels = torch.from_numpy(data.labels[named])
        self._names = torch.from_numpy(tokenise(data.class_names, tokenizer))

    @torch.no_grad()
    def __call__(self, model: SmallSigLip) -> float:
        names = model(self._pixels[:1], self._names)[1]
        images = model(self._pixels, self._names[:1])[0]
        return float(((images @ names.T).argmax(dim=1) == self._labels).float().mean())
