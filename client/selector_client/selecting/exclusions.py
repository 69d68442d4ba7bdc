"""Which candidates of a super-batch cannot be used, and why: those that the client sees itself, and those that a reply
names."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from selector_proto.contract import printable
from selector_proto.v1 import selector_pb2 as pb

# The words for reasons are those of the contract, in lower case.
_PREFIX = "EXCLUSION_REASON_"
REASONS: Mapping[str, pb.ExclusionReason.ValueType] = {
    name.removeprefix(_PREFIX).lower(): code for name, code in pb.ExclusionReason.items() if code
}
_WORDS = {code: word for word, code in REASONS.items()}
# Stands for reasons that a newer sidecar may have.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Excluded:
    """Candidates that were left out for one reason: their `indices`, int64 and ascending, and what was wrong with the
    `first` of them, in words."""

    indices: NDArray[np.int64]
    first: str


class Exclusions:
    """Collects the candidates of one super-batch that the client sees cannot be used. If it is `strict`, the first of
    them raises its error instead."""

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._why: dict[int, tuple[str, str]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._why

    def __len__(self) -> int:
        return len(self._why)

    def exclude(self, index: int, reason: str, error: Exception) -> None:
        """Leaves a candidate out. Of several reasons for one, the first counts. Raises the error if it is strict."""
        if self._strict:
            raise error
        self._why.setdefault(index, (reason, printable(str(error))))

    def found(self) -> dict[str, Excluded]:
        """Returns those of each reason that there is."""
        return _grouped({index: why for index, (why, _) in self._why.items()}, self._why)

    def messages(self) -> list[pb.Exclusion]:
        """Returns them as a request says it."""
        return [
            pb.Exclusion(reason=REASONS[reason], indices=one.indices.tolist(), first=one.first)
            for reason, one in self.found().items()
        ]

    def with_reasons(self, reasons: Mapping[int, str], words: str) -> dict[str, Excluded]:
        """Returns those that were found, and further ones by their index, of which all that is known is `words`."""
        more = {index: (why, words) for index, why in reasons.items() if index not in self._why}
        together = self._why | more
        return _grouped({index: why for index, (why, _) in together.items()}, together)


def read_exclusions(exclusions: Sequence[pb.Exclusion], candidates: int) -> dict[str, Excluded]:
    """Returns what a reply says, by reason. Raises ValueError if it names what is no candidate, or one twice."""
    found: dict[str, list[int]] = {}
    for one in exclusions:
        found.setdefault(_WORDS.get(one.reason, UNKNOWN), []).extend(one.indices)
    every = np.array([index for indices in found.values() for index in indices], np.int64)
    if len(every) and (every.max() >= candidates or len(np.unique(every)) < len(every)):
        raise ValueError(f"the server left out {len(every)} candidates that are not different ones of {candidates}")
    first = {_WORDS.get(one.reason, UNKNOWN): printable(one.first) for one in reversed(exclusions)}
    return {reason: Excluded(np.array(sorted(indices), np.int64), first[reason]) for reason, indices in found.items()}


def merged(one: Mapping[str, Excluded], other: Mapping[str, Excluded]) -> dict[str, Excluded]:
    """Returns those of both, which have no candidate in common."""
    found = {**one, **other}
    for why in one.keys() & other.keys():
        parts = sorted((one[why], other[why]), key=lambda part: int(part.indices[0]))
        found[why] = Excluded(np.sort(np.concatenate([part.indices for part in parts])), parts[0].first)
    return found


def indices_of(excluded: Mapping[str, Excluded]) -> NDArray[np.int64]:
    """Returns the candidates of all reasons, ascending."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *(one.indices for one in excluded.values())]))


def uniform(size: int, picks: int, seed: int, closed: Collection[int]) -> NDArray[np.int64]:
    """Returns `picks` of `size` candidates at random, none of the `closed` ones as long as there are others."""
    random = np.random.default_rng(seed)
    if not closed:
        return random.choice(size, picks, replace=False).astype(np.int64)
    shut = np.array(sorted(closed), np.int64)
    left = np.setdiff1d(np.arange(size), shut)
    first = random.choice(left, min(picks, len(left)), replace=False)
    return np.concatenate([first, random.choice(shut, picks - len(first), replace=False)]).astype(np.int64)


def _grouped(reasons: Mapping[int, str], words: Mapping[int, tuple[str, str]]) -> dict[str, Excluded]:
    found: dict[str, list[int]] = {}
    for index in sorted(reasons):
        found.setdefault(reasons[index], []).append(index)
    return {why: Excluded(np.array(indices, np.int64), words[indices[0]][1]) for why, indices in found.items()}
