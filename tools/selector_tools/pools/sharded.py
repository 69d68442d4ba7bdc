"""A pool of shards that are read pair by pair, whatever their files are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from selector_proto.contract import MAX_ID_BYTES

from selector_server.errors import Exclusion, InvalidRequest, LimitExceeded, SelectorError, SetupError
from selector_tools.pools.pool import Batch, Known

Ids = Literal["shard/key", "key"]  # what `--ids` takes


# Of several images of one sample the first of these counts, as in open_clip's training, which knows the first four.
IMAGES = ("jpg", "png", "jpeg", "webp", "avif", "gif", "bmp", "tif", "tiff")


class Pair(NamedTuple):
    """A pair of image file and UTF-8 text. `other` is the id of the kind that was not asked for."""

    id: str
    other: str
    image: bytes
    text: bytes
    tag: int | None = None


class NoPair(NamedTuple):
    """What cannot be used, and why."""

    id: str
    error: SelectorError


@dataclass(frozen=True)
class PairShard(ABC):
    """The file at `place`, which ids call `name`. A pair's id is "NAME/KEY", or with `ids` "key" its key alone."""

    name: str
    place: str
    ids: Ids = "shard/key"
    size: ClassVar[int | None] = None

    @abstractmethod
    def pairs(self) -> Iterator[Pair | NoPair]:
        """Yields all pairs, and what is none. Raises SetupError if the file is damaged."""

    def called(self, key: str) -> tuple[str, str]:
        """Returns the id of what has this key, and the id of the other kind."""
        both = f"{self.name}/{key}", key
        return both if self.ids == "shard/key" else both[::-1]

    def batches(self, size: int, known: Known | None = None) -> Iterator[Batch]:
        """Yields the pairs, as Shard says."""
        return _batched(self.pairs(), size, DigestsOfNames() if known is None else known)


@dataclass(frozen=True)
class ShardedPool:
    """The pairs of `parts`, one part after the other. Their number is not known before they are read."""

    parts: Sequence[PairShard]
    size: ClassVar[int | None] = None

    def shards(self) -> Sequence[PairShard]:
        """Returns the parts."""
        return self.parts

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields the pairs, as Pool says. A batch may have those of several shards."""
        empty = True
        for batch in _batched((pair for part in self.parts for pair in part.pairs()), size, DigestsOfNames()):
            yield batch
            empty = False
        if empty:
            raise SetupError("--pool", ", ".join(part.place for part in self.parts), "holds no pair of image and text")


def _batched(found: Iterable[Pair | NoPair], size: int, known: Known) -> Iterator[Batch]:
    pairs: list[Pair] = []
    bad: list[tuple[object, SelectorError]] = []
    for one in found:
        error = one.error if isinstance(one, NoPair) else _wrong_id(one.id, known)
        if error is not None:
            bad.append((one.id.encode(errors="backslashreplace").decode(), error))
        elif isinstance(one, Pair):
            pairs.append(one)
        if len(pairs) == size or len(bad) == size:
            yield _batch(pairs, bad)
            pairs, bad = [], []
    if pairs or bad:
        yield _batch(pairs, bad)


def _batch(pairs: Sequence[Pair], bad: list[tuple[object, SelectorError]]) -> Batch:
    texts = [pair.text for pair in pairs]
    captions = [text.decode(errors="replace") for text in texts]
    ids, images = [pair.id for pair in pairs], [pair.image for pair in pairs]
    others, tags = [pair.other for pair in pairs], [pair.tag for pair in pairs if pair.tag is not None]
    tagged = np.array(tags, np.int64) if tags and len(tags) == len(pairs) else None
    return Batch(ids, images, texts, captions, bad, others, tagged)


def _wrong_id(name: str, known: Known) -> SelectorError | None:
    """Returns why a sample cannot have this id, if it cannot."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        return InvalidRequest("id", ascii(name), f"must be UTF-8: {error}").excluding(Exclusion.TEXT)
    if size > MAX_ID_BYTES:
        limit = f"at most {MAX_ID_BYTES} bytes"
        return LimitExceeded("id", f"an id of {size} bytes", limit).excluding(Exclusion.TOO_LARGE)
    if not known.add(name):
        limit = "an earlier sample has the same; --ids shard/key tells samples of different shards apart"
        return InvalidRequest("id", "there twice", limit).excluding(Exclusion.REPEATED)
    return None


class DigestsOfNames:
    """Tells names that were there before: by a digest of 8 bytes, of which 10^8 take less than 1 GB."""

    _MOST = 1 << 18

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []  # each at least twice as long as the next

    def add(self, name: str) -> bool:
        """Adds a name; returns whether it is new."""
        digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        if digest in self._recent or any(_holds(part, digest) for part in self._sorted):
            return False
        self._recent.add(digest)
        if len(self._recent) == self._MOST:
            part = np.sort(np.fromiter(self._recent, np.uint64))
            while self._sorted and len(self._sorted[-1]) < 2 * len(part):
                part = np.sort(np.concatenate([part, self._sorted.pop()]))
            self._sorted.append(part)
            self._recent = set()
        return True


def _holds(part: NDArray[np.uint64], digest: int) -> bool:
    at = int(np.searchsorted(part, np.uint64(digest)))
    return at < len(part) and int(part[at]) == digest
