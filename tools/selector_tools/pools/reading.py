"""Turns pairs into what a model's towers take, by the sidecar's own code and within the limits that it has by
default, so that no pair is used here that it would refuse."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from selector_server.config import Config
from selector_server.encoding.preprocess import Limits, Preprocessor
from selector_server.errors import Exclusion, LimitExceeded, SelectorError, SetupError
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.pool import Batch, Pool
from selector_tools.progress import counted

_MAX_TEXT_BYTES: int = Config.model_fields["max_text_bytes"].default
# What all files of a batch take after they were resized is bounded by --batch.
LIMITS = Limits(Config.model_fields["max_image_pixels"].default, decoded_bytes=1 << 62)


@dataclass(frozen=True)
class Inputs:
    """The usable pairs of a batch: pixels uint8 [n, H, W, C] and tokens int64 [n, T]. `rows`, int64 [n], says where
    they were in the batch that was read."""

    batch: Batch
    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]


def read_batch(preprocessor: Preprocessor, batch: Batch, exclusions: Exclusions) -> Inputs:
    """Reads the pairs of a batch, and tells `exclusions` which cannot be used. Raises InvalidRequest where all samples
    are wrong in the same way, such as misshapen arrays."""
    bad: dict[int, SelectorError] = {}

    def note(row: int, error: SelectorError) -> None:
        bad.setdefault(row, error)

    pixels = preprocessor.pixels(batch.images, bad=note)
    tokens = preprocessor.tokens(_short(batch, note).texts, bad=note)
    for row in sorted(bad):
        exclusions.add(batch.ids[row], bad[row])
    rows = np.array([row for row in range(len(batch)) if row not in bad], np.int64)
    if not bad:
        return Inputs(batch, rows, pixels, tokens)
    return Inputs(batch.at(rows), rows, pixels[rows], tokens[rows])


def _short(batch: Batch, note: Callable[[int, SelectorError], None]) -> Batch:
    """Returns the batch without the texts that are longer than the sidecar takes."""
    if isinstance(batch.texts, np.ndarray):
        return batch
    texts = list(batch.texts)
    for row, text in enumerate(texts):
        if len(text) > _MAX_TEXT_BYTES:
            error = LimitExceeded("text", f"{len(text)} bytes of text", f"at most {_MAX_TEXT_BYTES}")
            note(row, error.excluding(Exclusion.TOO_LARGE))
            texts[row] = b""
    return replace(batch, texts=texts)


def read_pool(
    preprocessor: Preprocessor,
    pool: Pool,
    place: str,
    exclusions: Exclusions,
    most_bytes: int,
    most: int | None = None,
    batch: int = 256,
) -> tuple[list[bytes], NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the keys [n], pixels uint8 [n, H, W, C] and tokens int64 [n, T] of the first `most` usable pairs, or of
    all of them. Raises SetupError if they take more than `most_bytes` of memory, or if too many cannot be used."""
    keys: list[bytes] = []
    pixels, tokens, held, size = [], [], 0, 0
    for part in counted("read", pool.size, pool.batches(batch)):
        exclusions.begin(part)
        inputs = read_batch(preprocessor, part, exclusions)
        keys += inputs.batch.keys
        pixels.append(inputs.pixels)
        tokens.append(inputs.tokens)
        held += inputs.pixels.nbytes + inputs.tokens.nbytes
        size += len(inputs.pixels)
        if held > most_bytes:
            limit = f"its first {size} pairs take {held} bytes of memory; at most {most_bytes}"
            raise SetupError("--pool", place, limit)
        if most is not None and size >= most:
            break
    exclusions.check(place)
    return keys[:most], np.concatenate(pixels)[:most], np.concatenate(tokens)[:most]
