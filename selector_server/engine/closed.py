"""Which candidates of a super-batch may not be picked, with a reason for each (docs/adr/0019).

What closes a candidate writes it into a `Closing`; what is made of that, a `Closed`, travels with the candidates.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from selector_proto.contract import printable

from selector_server.errors import Exclusion, NotPossible, SelectorError
from selector_server.sampling.locality import Neighbours

# A refusal quotes so much of them: it has to fit into a status, with those of all other reasons.
QUOTED = 100


@dataclass(frozen=True)
class Prefiltered:
    """What a prefilter knew: of how many candidates the reference's loss is `known` and `unknown`, and the `rows` that
    it closed, int64 [n], ascending. `neighbours` says how alike the known ones are, if embeddings tell it."""

    known: int
    unknown: int
    rows: NDArray[np.int64]
    neighbours: Neighbours | None = None

    @staticmethod
    def joined(parts: Sequence[tuple["Prefiltered", int]]) -> "Prefiltered":
        """Those of several super-batches, each with the index of its first candidate. Neighbours are a mean over those
        that tell it."""
        known, unknown = (sum(getattr(one, of) for one, _ in parts) for of in ("known", "unknown"))
        rows = np.concatenate([one.rows + offset for one, offset in parts])
        told = [(one.neighbours.adjacent, one.neighbours.random) for one, _ in parts if one.neighbours is not None]
        return Prefiltered(known, unknown, rows, Neighbours(*np.mean(told, axis=0).tolist()) if told else None)


@dataclass(frozen=True)
class Closed:
    """The candidates that may not be picked. `reasons` has why, by the candidate's index, of those that cannot be used;
    `first` has, for each reason, the lowest index and what was wrong with that candidate, in words. Those that a
    prefilter closed can be used, and nothing is said of each."""

    reasons: Mapping[int, Exclusion] = field(default_factory=dict)
    first: Mapping[Exclusion, tuple[int, str]] = field(default_factory=dict)
    prefiltered: Prefiltered | None = None

    def __len__(self) -> int:
        """How many they are."""
        return len(self.reasons) + self.left_out

    @property
    def left_out(self) -> int:
        """How many a prefilter closed."""
        return 0 if self.prefiltered is None else len(self.prefiltered.rows)

    @property
    def counts(self) -> dict[Exclusion, int]:
        """How many there are of each reason."""
        return dict(Counter(self.reasons.values()))

    def indices(self, reason: Exclusion) -> list[int]:
        """Those of one reason, ascending."""
        return sorted(index for index, why in self.reasons.items() if why is reason)

    def open(self, size: int) -> NDArray[np.bool_]:
        """Which of `size` candidates may be picked, bool [size]."""
        mask = np.ones(size, np.bool_)
        mask[list(self.reasons)] = False
        if self.prefiltered is not None:
            mask[self.prefiltered.rows] = False
        return mask

    def open_rows(self, size: int) -> NDArray[np.int64]:
        """The indices of those that may be picked, ascending."""
        return np.flatnonzero(self.open(size))

    def check(self, size: int, picks: int, most: float) -> None:
        """Raises NotPossible if fewer than `picks` of `size` candidates are left, or if more than the share `most` of
        them is closed."""
        if not self.reasons:
            return
        counts = self.counts
        parts = [
            f"{counts[why]} {why.value} (candidate {index}: {_plain(words)})"
            for why, (index, words) in sorted(self.first.items(), key=lambda item: -counts[item[0]])
        ]
        excluded = f"excluded are {', '.join(parts)}"
        if (left := size - len(self)) < picks:
            beside = f"; beside {self.left_out} that the prefilter left out" if self.left_out else ""
            raise NotPossible("candidates left", f"{left} of {size}", f"{picks} must be picked; {excluded}{beside}")
        if (bad := len(self.reasons)) > most * size:
            limit = f"max_excluded_share is {most:g}, at most {int(most * size)} of them; {excluded}"
            raise NotPossible("excluded candidates", f"{bad} of {size}", limit)

    @staticmethod
    def joined(parts: Sequence[tuple["Closed", int]]) -> "Closed":
        """Those of several super-batches, each with its size, one behind the other."""
        closing, offset = Closing(), 0
        filters: list[tuple[Prefiltered, int]] = []
        for closed, size in parts:
            closing.add(closed, offset)
            if (one := closed.prefiltered) is not None:
                filters.append((one, offset))
            offset += size
        if filters:
            closing.prefilter(Prefiltered.joined(filters))
        return closing.closed()


ALL_OPEN = Closed()


class Closing:
    """Collects, from any thread, which candidates may not be picked. Of several reasons for one, the first counts."""

    def __init__(self, closed: Closed = ALL_OPEN) -> None:
        self._reasons, self._first, self._prefiltered = dict(closed.reasons), dict(closed.first), closed.prefiltered
        self._lock = Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def open_rows(self, size: int) -> NDArray[np.int64]:
        """The indices of those of `size` candidates that are not closed by now, ascending."""
        return self.left(np.arange(size))

    def left(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these candidates that are not closed by now."""
        with self._lock:
            rows = rows[~np.isin(rows, list(self._reasons))] if self._reasons else rows
            return rows if self._prefiltered is None else rows[~np.isin(rows, self._prefiltered.rows)]

    def close(self, index: int, reason: Exclusion, words: str) -> None:
        """Closes a candidate; `words` say what is wrong with it."""
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = reason
            if reason not in self._first or index < self._first[reason][0]:
                self._first[reason] = (index, printable(words))

    def bad(self, index: int, error: SelectorError) -> None:
        """Closes a candidate for an error that is its own. Raises any other error."""
        if error.exclusion is None:
            raise error
        self.close(index, error.exclusion, str(error))

    def prefilter(self, prefiltered: Prefiltered) -> None:
        """Closes what a prefilter leaves out. It is done once."""
        with self._lock:
            self._prefiltered = prefiltered

    def add(self, closed: Closed, offset: int = 0) -> None:
        """Closes all of these that cannot be used; `offset` is added to their indices."""
        for why, (index, words) in closed.first.items():
            self.close(offset + index, why, words)
        for index, why in closed.reasons.items():
            self.close(offset + index, why, "")

    def closed(self) -> Closed:
        """All that are closed by now."""
        with self._lock:
            if not self._reasons and self._prefiltered is None:
                return ALL_OPEN
            return Closed(dict(self._reasons), dict(self._first), self._prefiltered)


def _plain(words: str) -> str:
    """A quotation for a status, whose bytes are bounded, and whose characters travel in ASCII."""
    plain = words.encode("ascii", "replace").decode()
    return plain if len(plain) <= QUOTED else plain[: QUOTED - 3] + "..."
