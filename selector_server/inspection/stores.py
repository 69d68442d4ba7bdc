"""All that is kept of selections for people, in bounded memory: the one thing that the sources of views read."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeAlias

import numpy as np

from selector_server.inspection.history import History
from selector_server.inspection.observation import Fate, Observation
from selector_server.inspection.slices import Slices, tag_counts, word_counts
from selector_server.inspection.window import WITH_CONTENT, Window

SliceCounter: TypeAlias = Callable[[str, Counter[str], Counter[str]], None]
# So many trainers are told apart by what they say of fallbacks.
TRAINERS = 1024
# A tag is shown by so many of its characters.
LONGEST_TAG = 64


@dataclass
class Totals:
    """Counts since the server's start."""

    selections: int = 0
    candidates: int = 0
    fates: dict[Fate, int] = field(default_factory=lambda: dict.fromkeys(Fate, 0))
    fallbacks: dict[str, int] = field(default_factory=dict)


class Inspection:
    """Of the last `window` super-batches the numbers; with `content` also pictures, captions, ids and tags of the last
    `with_content`, the history of samples, and slices, which `counters` are told of, too. One thread adds; any may read
    within `reading`, a lock."""

    def __init__(
        self, window: int, content: bool, counters: Sequence[SliceCounter] = (), with_content: int = WITH_CONTENT
    ) -> None:
        self.reading = Lock()
        self.content = content
        self.window = Window(window, with_content)
        self.totals = Totals()
        self.history = History() if content else None
        self.tags, self.words, self._counters = Slices(), Slices(), counters

    def add(self, seen: Observation, words: bool = True) -> Observation:
        """Keeps a selection, and returns it whole, with its number. Without `words`, those of its captions are not
        counted."""
        content = seen.content if self.content else None
        tags = captions = None
        picks = np.flatnonzero(seen.fates == Fate.PICKED)
        if content is not None:
            tags = tag_counts(content.tags, picks, tag_text) if len(content.tags) else None
            captions = word_counts(content.captions, picks) if words and len(content.captions) else None
        with self.reading:
            self.totals.selections += 1
            seen = replace(seen, number=self.totals.selections)
            self._count(seen)
            self.window.add(seen if self.content else replace(seen, content=None))
            if content is not None and self.history is not None and len(content.ids):
                self.history.add(seen, content.ids)
            for kind, slices, counts in (("tag", self.tags, tags), ("word", self.words, captions)):
                if counts is None:
                    continue
                slices.add(*counts)
                for counter in self._counters:
                    counter(kind, *counts)
        return seen

    def _count(self, seen: Observation) -> None:
        totals = self.totals
        totals.candidates += seen.size
        for fate, count in enumerate(np.bincount(seen.fates, minlength=max(Fate) + 1).tolist()):
            if count:
                totals.fates[Fate(fate)] += count
        if seen.fallbacks is not None and (seen.trainer in totals.fallbacks or len(totals.fallbacks) < TRAINERS):
            totals.fallbacks[seen.trainer] = max(totals.fallbacks.get(seen.trainer, 0), seen.fallbacks)


def tag_text(tag: bytes) -> str:
    """A tag as it is shown."""
    return tag.decode(errors="replace")[:LONGEST_TAG]
