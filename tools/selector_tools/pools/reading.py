"""Turns pairs into what a model's towers take. A file that cannot be read is counted, and does not end a long run."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.preprocess import Preprocessor
from selector_server.errors import InvalidRequest, LimitExceeded, SetupError
from selector_tools.pools.pool import Batch, Pool
from selector_tools.progress import counted

# One file may have so many pixels, and all files of a batch so many bytes after they were resized. The second is no
# real limit, because a batch is as large as --batch says.
MAX_IMAGE_PIXELS, MAX_DECODED_BYTES = 32 << 20, 1 << 62
_NAMED = 5


@dataclass
class Skipped:
    """Counts the samples, among `seen`, that could not be read, and says why of the first of them."""

    seen: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: object, why: str) -> None:
        """Counts one more that cannot be read."""
        self.count += 1
        if self.count <= _NAMED:
            self.first.append(f"{name}: {why}")

    def check(self, place: str) -> None:
        """Raises SetupError if nothing could be read."""
        if self.seen and self.count == self.seen:
            raise SetupError("--pool", place, f"none of its {self.seen} images can be read; {self.first[0]}")

    def lines(self) -> list[str]:
        """Returns lines for people; none if all is well."""
        more = [f"and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
        return [f"skipped {line}" for line in self.first + more]


@dataclass(frozen=True)
class Inputs:
    """The readable pairs of a batch: pixels uint8 [n, H, W, C] and tokens int64 [n, T]. `rows`, int64 [n], says where
    they were in the batch that was read."""

    batch: Batch
    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]


def read_batch(preprocessor: Preprocessor, batch: Batch, skipped: Skipped) -> Inputs:
    """Reads a batch, and tells `skipped` what cannot be read. Raises InvalidRequest where all samples are wrong in the
    same way: misshapen arrays, ids of no token."""
    rows = np.arange(len(batch))
    try:
        return Inputs(batch, rows, preprocessor.pixels(batch.images), preprocessor.tokens(batch.texts))
    except (InvalidRequest, LimitExceeded):
        if isinstance(batch.images, np.ndarray):
            raise
    pixels: list[NDArray[np.uint8]] = []
    tokens: list[NDArray[np.int64]] = []
    readable: list[int] = []
    for row in rows.tolist():
        one = batch.at(rows[row : row + 1])
        try:
            both = preprocessor.pixels(one.images), preprocessor.tokens(one.texts)
        except (InvalidRequest, LimitExceeded) as error:
            skipped.add(batch.ids[row], f"{error.value}; {error.limit}")
            continue
        pixels.append(both[0])
        tokens.append(both[1])
        readable.append(row)
    kept = np.array(readable, np.int64)
    image, text = preprocessor.image, preprocessor.text
    empty = (
        np.empty((0, image.height, image.width, image.channels), np.uint8),
        np.empty((0, text.max_tokens), np.int64),
    )
    return Inputs(batch.at(kept), kept, np.concatenate([empty[0], *pixels]), np.concatenate([empty[1], *tokens]))


def read_pool(
    preprocessor: Preprocessor, pool: Pool, place: str, most_bytes: int, most: int | None = None, batch: int = 256
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Skipped]:
    """Returns pixels uint8 [n, H, W, C] and tokens int64 [n, T] of the first `most` readable pairs, or of all of them,
    and what was skipped. Raises SetupError if they take more than `most_bytes` of memory."""
    pixels, tokens, skipped, held, size = [], [], Skipped(), 0, 0
    for part in counted("read", pool.size, pool.batches(batch)):
        skipped.seen += len(part)
        inputs = read_batch(preprocessor, part, skipped)
        pixels.append(inputs.pixels)
        tokens.append(inputs.tokens)
        held += inputs.pixels.nbytes + inputs.tokens.nbytes
        size += len(inputs.pixels)
        if held > most_bytes:
            limit = f"its first {size} pairs take {held} bytes of memory; at most {most_bytes}"
            raise SetupError("--pool", place, limit)
        if most is not None and size >= most:
            break
    skipped.check(place)
    return np.concatenate(pixels)[:most], np.concatenate(tokens)[:most], skipped
