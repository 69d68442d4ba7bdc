"""What splits of icons go by: the concept of a name, and how many families draw it.

A picture's *concept* is its name without words of style and size: "arrow-circle-left-20-filled" is "arrow
circle left".
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from selector_tools.datasets.dataset import Mask, Pictures, Rows

STYLE = """
    alt baseline bold duotone fill filled ios large lg light line logo ltr md medium micro mini o original
    outline outlined plain regular round rounded rtl sharp simple sm small solid thin variant wordmark xl xs
"""
_STYLE = frozenset(STYLE.split())


def concept(name: str) -> str:
    """Returns the words of a glyph's name without style, size and numbers, sorted as fonts differ in their order."""
    words = sorted(set(re.findall("[a-z]+", name.lower())))
    # A name of nothing but style words means them, as "bold" does in a text editor.
    return " ".join([word for word in words if word not in _STYLE] or words)


def at_most(times: int, words: Sequence[str]) -> Mask:
    """Returns bool [n], which is False where the same string was there `times` times before."""
    seen: Counter[str] = Counter()
    seen_before = []
    for word in words:
        seen_before.append(seen[word])
        seen[word] += 1
    return np.array(seen_before, int) < times


def artists(pictures: Pictures, chosen: Mask) -> Rows:
    """Returns for each picture [n] how many families draw its concept, counting only the `chosen` ones (bool [n])."""
    families = defaultdict(set)
    for row in np.flatnonzero(chosen).tolist():
        families[pictures.concepts[row]].add(pictures.families[row])
    return np.array([len(families.get(words, ())) for words in pictures.concepts], np.intp)
