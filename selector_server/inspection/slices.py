"""How often candidates of a tag, or with a word in their caption, are picked: bias shows where rates differ."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# So many names of each kind are counted; when there are twice as many, the rarest go into `other`.
NAMES = 2048
# A word is counted by so many of its characters.
LONGEST = 64
# So many captions of a super-batch are taken apart.
CAPTIONS = 4096
_WORD = re.compile(r"[^\W\d_]{2,}")


class Slices:
    """Candidates and picks by name, and those of names that are too rare to be kept as `other`: [candidates, picked].
    The sums stay exact; a rare name may begin anew."""

    def __init__(self, most: int = NAMES) -> None:
        self.candidates: Counter[str] = Counter()
        self.picked: Counter[str] = Counter()
        self.other = [0, 0]
        self._most = most

    def add(self, candidates: Counter[str], picked: Counter[str]) -> None:
        """Counts the names of one super-batch."""
        self.candidates.update(candidates)
        self.picked.update(picked)
        if len(self.candidates) <= 2 * self._most:
            return
        for name, count in self.candidates.most_common()[self._most :]:
            self.other[0] += count
            self.other[1] += self.picked.pop(name, 0)
            del self.candidates[name]

    def most_frequent(self, most: int) -> tuple[list[tuple[str, int, int]], tuple[int, int]]:
        """The names with most candidates, as (name, candidates, picked), and the sums of all others."""
        shown = [(name, count, self.picked[name]) for name, count in self.candidates.most_common(most)]
        rest = self.candidates.total() - sum(count for _, count, _ in shown)
        rest_picked = self.picked.total() - sum(picked for _, _, picked in shown)
        return shown, (rest + self.other[0], rest_picked + self.other[1])


Counts = tuple[Counter[str], Counter[str]]


def tag_counts(
    tags: NDArray[np.integer[Any]] | Sequence[bytes], picks: NDArray[np.int64], shown: Callable[[bytes], str]
) -> Counts:
    """Candidates and picks by tag; who has none counts for none. `shown` makes a text of the bytes of a tag."""
    if isinstance(tags, np.ndarray):
        return _integers(tags), _integers(tags[picks])
    chosen = (tags[pick] for pick in picks.tolist())
    return _texts(Counter(tags), shown), _texts(Counter(chosen), shown)


def word_counts(captions: Sequence[bytes], picks: NDArray[np.int64]) -> Counts:
    """Candidates and picks by the words in their captions, of two letters or more; a caption counts once for each. Of
    very many captions some are looked at, evenly spaced."""
    step = -(-len(captions) // CAPTIONS)
    words = [words_of(caption) for caption in captions[::step]]
    return _each(words), _each(words[pick // step] for pick in picks.tolist() if pick % step == 0)


def words_of(caption: bytes) -> set[str]:
    """The different words of a caption, in lower case."""
    return {word[:LONGEST] for word in _WORD.findall(caption.decode(errors="replace").lower())}


def _each(sets: Iterable[set[str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for one in sets:
        counts.update(one)
    return counts


def _integers(tags: NDArray[np.integer[Any]]) -> Counter[str]:
    values, counts = np.unique(tags, return_counts=True)
    return Counter(dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)))


def _texts(counts: Counter[bytes], shown: Callable[[bytes], str]) -> Counter[str]:
    named: Counter[str] = Counter()
    for tag, count in counts.items():
        if tag:
            named[shown(tag)] += count
    return named
