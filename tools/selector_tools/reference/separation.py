"""Measures how well a reference tells true captions from shuffled ones, over all pairs and for each word."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from selector_server.sampling import Embedded
from selector_tools.reference.rank_statistics import auc

_WORD = re.compile(r"\w+")


class Word(NamedTuple):
    """A word that `captions` captions have; `auc` is that among their pairs."""

    word: str
    captions: int
    auc: float


@dataclass(frozen=True)
class Separation:
    """Losses (nats) of n images with their own captions, float64 [n], and with another's where `differs`, bool [n]."""

    true: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    differs: NDArray[np.bool_]

    @property
    def auc(self) -> float:
        """The chance that a true caption costs less than a shuffled one; see `rank_statistics.auc`."""
        return auc(self.true, self.shuffled[self.differs])

    def words(self, captions: Sequence[str], min_count: int) -> list[Word]:
        """Returns the words that at least `min_count` captions have, the best known first."""
        rows = defaultdict[str, list[int]](list)
        for row, caption in enumerate(captions):
            for word in set(_WORD.findall(caption.lower())):
                rows[word].append(row)
        found = []
        for word, where in rows.items():
            at = np.array(where)
            shuffled = self.shuffled[at][self.differs[at]]
            if len(at) >= min_count and len(shuffled):
                found.append(Word(word, len(at), auc(self.true[at], shuffled)))
        return sorted(found, key=lambda each: (-each.auc, each.word))


def separate(embedded: Embedded, texts: Sequence[bytes], seed: int) -> Separation:
    """Compares each image with its own caption and with one from elsewhere, drawn in one ring over all. `texts` says
    which captions are the same: a pair with the same caption is not wrong, and does not count as shuffled."""
    order = np.random.default_rng(seed).permutation(len(embedded))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, 1)
    other = Embedded(embedded.image, embedded.text[torch.from_numpy(giver)], embedded.scale, embedded.bias)
    differs = np.array([texts[row] != texts[of] for row, of in enumerate(giver.tolist())], np.bool_)
    return Separation(losses(embedded), losses(other), differs)


def losses(embedded: Embedded) -> NDArray[np.float64]:
    """Computes the sigmoid loss of each image with its own text, in nats, float64 [n]."""
    return softplus(-embedded.own_logits).numpy()
