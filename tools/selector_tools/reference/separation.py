"""How well a reference tells true captions from shuffled ones, over all pairs and for each word of the captions."""

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
from selector_tools.reference.rank_statistics import Values, average_ranks

_WORD = re.compile(r"\w+")


class Word(NamedTuple):
    """`auc` among the pairs whose caption has the word, in `captions` of them."""

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
        """See `auc`."""
        return auc(self.true, self.shuffled[self.differs])

    def words(self, captions: Sequence[str], min_count: int) -> list[Word]:
        """Words of at least `min_count` captions, the best known first."""
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
    """Each image against a caption from elsewhere, drawn in one ring over all. `texts` says which captions are the
    same: such a pair is not wrong, and does not count as shuffled."""
    order = np.random.default_rng(seed).permutation(len(embedded))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, 1)
    other = Embedded(embedded.image, embedded.text[torch.from_numpy(giver)], embedded.scale, embedded.bias)
    differs = np.array([texts[row] != texts[of] for row, of in enumerate(giver.tolist())], np.bool_)
    return Separation(losses(embedded), losses(other), differs)


def losses(embedded: Embedded) -> NDArray[np.float64]:
    """The sigmoid loss of each image with its own text, nats, float64 [n]."""
    return softplus(-embedded.own_logits).numpy()


def auc(low: Values, high: Values) -> float:
    """The chance that one of `low` is below one of `high`, ties counting half. NaN where one is empty."""
    if not len(low) or not len(high):
        return float("nan")
    ranks = average_ranks(np.concatenate([low, high]))
    above = ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(above / (len(low) * len(high)))
