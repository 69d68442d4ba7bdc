"""A pool made ready for training: captions shuffled, words numbered, validation and test set apart."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from selector_tools.datasets.dataset import Dataset, shuffle_captions
from selector_tools.datasets.pairs import Pairs, make_tokenizer
from selector_tools.study.flexi_vit import FULL, PATCH_8, FlexiSigLip
from selector_tools.study.model import SmallSigLip
from selector_tools.study.pools import POOLS
from selector_tools.study.zero_shot import ZeroShot


@dataclass(frozen=True)
class Task:
    """A pool, as one seed and one share of wrong captions make it. `mislabelled`, bool [n], marks the wrong ones, and
    `concepts`, int64 [n], numbers what is in the pictures. `known` are the concepts that the reference is shown."""

    data: Dataset
    pairs: Pairs
    curated: Pairs
    mislabelled: NDArray[np.bool_]
    concepts: NDArray[np.int64]
    known: frozenset[str]
    validation: ZeroShot
    test: ZeroShot
    tokenizer: Tokenizer
    words: Path  # the tokenizer's file

    def model(self, seed: int, resolution: str | None = None) -> SmallSigLip:
        """Returns a new learner, whose first weights the seed decides."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vocabulary = self.tokenizer.get_vocab_size()
            if resolution is None:
                return SmallSigLip(vocabulary)
            return FlexiSigLip(vocabulary, (FULL, PATCH_8) if resolution == "flexi" else (FULL,))


@lru_cache(maxsize=2)
def prepare(pool: str, noise: float, seed: int, folder: Path) -> Task:
    """Returns the pool `pool` with a share `noise` of its captions shuffled by the seed. The tokenizer, which is the
    same for all shares and seeds, is written into `folder`."""
    kind = POOLS[pool]
    data = _loaded(pool)
    captions, mislabelled = shuffle_captions(data.pool.captions, noise, seed)
    tokenizer, words = _words(pool, folder)
    validation, test = (ZeroShot(part, tokenizer, kind.class_size) for part in kind.split(data.evaluation))
    return Task(
        data,
        Pairs.of(data.pool, captions, tokenizer),
        Pairs.of(data.curated, data.curated.captions, tokenizer),
        mislabelled,
        np.unique(data.pool.concepts, return_inverse=True)[1].astype(np.int64),
        frozenset(data.curated.concepts),
        validation,
        test,
        tokenizer,
        words,
    )


@lru_cache(maxsize=2)
def _loaded(pool: str) -> Dataset:
    return POOLS[pool].load()


@lru_cache(maxsize=2)
def _words(pool: str, folder: Path) -> tuple[Tokenizer, Path]:
    """Returns the tokenizer of all captions, and its file."""
    data, words = _loaded(pool), folder / f"{pool}-words.json"
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, suffix=".json", delete=False) as file:  # others may be doing the same
        tokenizer = make_tokenizer([*data.pool.captions, *data.curated.captions], Path(file.name))
        Path(file.name).replace(words)
    return tokenizer, words


def described(pool: str, folder: Path) -> dict[str, object]:
    """Returns how large a pool and its held-out parts are, as JSON takes it."""
    task = prepare(pool, 0.0, 0, folder)
    parts = {"validation": task.validation, "test": task.test}
    return {
        "about": POOLS[pool].about,
        "pairs": len(task.pairs.pixels),
        "curated": len(task.curated.pixels),
    } | {
        name: {
            "pictures": len(part),
            "classes": len(part.names),
            "unknown": len(part) - part.count(task.known),
        }
        for name, part in parts.items()
    }
