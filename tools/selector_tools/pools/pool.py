"""A pool yields batches of pairs of image and text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.errors import SelectorError

# How ids are made: of a shard's name and a key, of the key alone, or they are integers of the pool's own.
Namespace = Literal["shard/key", "key", "integer"]


@dataclass(frozen=True)
class Batch:
    """n pairs. `ids` are int64 [n] or strings, as the trainer names the samples; `images` are uint8 [n, H, W, C] or
    encoded files; `texts` are token ids, int [n, T], or UTF-8; `captions` are for people, None where there are only
    tokens. `bad` names what the pool met on the way that is no pair, each with an error that says why. `other_ids` are
    what the pairs would be called with the other kind of ids, None where there is one kind only. `tags`, int64 [n], are
    numbers that the pool has for its pairs, None if it has none."""

    ids: NDArray[np.int64] | list[str]
    images: NDArray[np.uint8] | list[bytes]
    texts: NDArray[np.integer[Any]] | list[bytes]
    captions: list[str] | None
    bad: list[tuple[object, SelectorError]] = field(default_factory=list)
    other_ids: list[str] | None = None
    tags: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.ids)

    @property
    def keys(self) -> list[bytes]:
        """The ids as the reference cache has them."""
        if isinstance(self.ids, np.ndarray):
            return [integer_key(number) for number in self.ids.tolist()]
        return [string_key(name) for name in self.ids]

    def at(self, rows: NDArray[np.int64]) -> "Batch":
        """Returns the pairs of these rows, int64 [m], and nothing that is no pair."""
        ids, images, texts, captions, other_ids, tags = (
            _at(part, rows) for part in (self.ids, self.images, self.texts, self.captions, self.other_ids, self.tags)
        )
        return Batch(ids, images, texts, captions, [], other_ids, tags)


def _at(part: Any, rows: NDArray[np.int64]) -> Any:
    if part is None:
        return None
    return part[rows] if isinstance(part, np.ndarray) else [part[row] for row in rows.tolist()]


class Known(Protocol):
    """Knows names that were there before."""

    def add(self, name: str) -> bool:
        """Adds a name; returns whether it is new."""


class Pairs(Protocol):
    """Pairs that are read in batches."""

    @property
    def size(self) -> int | None:
        """The number of pairs, or None if it is not known before they are read."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields all pairs in their order, at most `size` at a time. Raises SetupError."""


class Shard(Pairs, Protocol):
    """A part of a pool that can be read apart, in another process too: shards are sent there by pickle. `name` is what
    ids call it, and differs from those of the pool's other shards; `place` is where it is."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def ids(self) -> Namespace: ...

    def batches(self, size: int, known: Known | None = None) -> Iterator[Batch]:
        """Yields the shard's pairs. Those whose name was there before are bad; `known` has the names of other shards,
        and is added to."""


class Pool(Pairs, Protocol):
    """Pairs come from a pool, which has one shard or several."""

    def shards(self) -> Sequence[Shard]:
        """Returns the parts, in the order in which `batches` reads them."""
