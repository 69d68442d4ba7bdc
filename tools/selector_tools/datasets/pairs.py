"""Turns pictures and captions into the arrays that trainer and sidecar take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordLevelTrainer

from selector_tools.datasets.dataset import Pictures

VOCABULARY = 8000
MAX_TOKENS = 8
PAD = 0


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
    """Pairs as arrays: `pixels` uint8 [n, H, W, C] and `tokens` int64 [n, T]."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]

    @staticmethod
    def of(pictures: Pictures, captions: Sequence[str], tokenizer: Tokenizer) -> "Pairs":
        return Pairs(pictures.pixels[..., None], tokenise(captions, tokenizer))

    def at(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Returns the pairs of these rows as a super-batch or a batch; the rows are their ids."""
        return {"images": self.pixels[rows], "texts": self.tokens[rows], "ids": rows}


def tokenise(captions: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.int64]:
    tokens = np.full((len(captions), MAX_TOKENS), PAD, np.int64)
    for row, encoding in zip(tokens, tokenizer.encode_batch_fast(list(captions)), strict=True):
        ids = encoding.ids[:MAX_TOKENS]
        row[: len(ids)] = ids
    return tokens
