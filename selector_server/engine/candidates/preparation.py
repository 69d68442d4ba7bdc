"""What raw samples need before the device does: known reference embeddings, decoded images, tokens. It runs beside the
device's thread, one thread a request; files are decoded on a bounded pool."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.image_files import decoded_alike
from selector_server.encoding.preprocess import Bad, Preprocessor
from selector_server.encoding.reference_cache import Found, ReferenceCache
from selector_server.engine.request import Request
from selector_server.errors import InvalidRequest, NotPossible

_FITS_BOTH = "send files and strings, which fit both, or fill its cache"

Images = NDArray[np.uint8] | list[bytes]
Texts = NDArray[np.integer[Any]] | list[bytes]


@dataclass(frozen=True)
class ModelInput:
    """What one model encodes: of pixels uint8 [B, H, W, C] and tokens int64 [B, T] these `rows`, int64 [n], or all."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """n, the number of samples that are encoded."""
        return len(self.pixels if self.rows is None else self.rows)

    @property
    def nbytes(self) -> int:
        """The bytes of those samples."""
        return len(self) * (self.pixels[:1].nbytes + self.tokens[:1].nbytes)

    def at(self, rows: NDArray[np.int64]) -> "ModelInput":
        """Some of its own rows. Nothing is copied."""
        return self if len(rows) == len(self) else ModelInput(self.pixels, self.tokens, rows)

    @staticmethod
    def joined(parts: Sequence["ModelInput"]) -> "ModelInput":
        """The samples of all parts in one copy."""
        pixels, tokens = (
            _stacked([(getattr(part, name), part.rows) for part in parts], sum(map(len, parts)))
            for name in ("pixels", "tokens")
        )
        return ModelInput(pixels, tokens)


@dataclass(frozen=True)
class Preparation:
    """The preprocessors of both models and the reference cache. Either preprocessor may be missing, with its model; so
    may the cache."""

    learner: Preprocessor | None
    reference: Preprocessor | None
    cache: ReferenceCache | None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample as both models take it."""
        return sum(p.sample_bytes for p in (self.learner, self.reference) if p is not None)

    @property
    def found_bytes(self) -> int:
        """Bytes of what the cache knows of one sample."""
        return 0 if self.cache is None else self.cache.sample_bytes

    def find(
        self, ids: Sequence[bytes], images: Images | None, rows: NDArray[np.int64], request: Request
    ) -> Found | None:
        """What the cache knows of the candidates of these ids, which are these `rows` of the images; None without a
        cache or ids. Of files it may take over what an earlier version knew of them."""
        if self.cache is None or not ids:
            return None
        with request.timed("cache"):
            files = images if isinstance(images, list) else None
            return self.cache.find(ids, None if files is None else lambda index: decoded_alike(files[rows[index]]))

    def learner_input(
        self, images: Images, texts: Texts, rows: NDArray[np.int64], request: Request, bad: Bad | None
    ) -> ModelInput | None:
        """What the learner encodes: these `rows` of the candidates. `bad` is told of those that cannot be used. Raises
        InvalidRequest, LimitExceeded, NotPossible, and what the request's check raises."""
        return None if self.learner is None else _input(self.learner, images, texts, rows, request, bad)

    def reference_input(
        self,
        images: Images,
        texts: Texts,
        rows: NDArray[np.int64],
        learner: ModelInput | None,
        request: Request,
        bad: Bad | None,
    ) -> ModelInput | None:
        """What the reference encodes of the candidates: these `rows`. Does and raises as `learner_input`; an input that
        fits the learner alone is not possible."""
        if self.reference is None or not len(rows):
            return None
        if learner is not None and self.learner is not None and self.learner.same_input(self.reference):
            return learner.at(rows)
        tokens = isinstance(texts, np.ndarray)
        if tokens and self.learner is not None and not self.learner.same_tokens(self.reference):
            raise NotPossible("samples.tokens", "set", f"the reference has a tokenizer of its own; {_FITS_BOTH}")
        try:
            return _input(self.reference, images, texts, rows, request, bad)
        except InvalidRequest as error:
            if learner is None:
                raise
            limit = f"{error.limit}; the reference takes other inputs than the learner: {_FITS_BOTH}"
            raise NotPossible(f"reference, {error.field}", error.value, limit) from error

    def examine(self, images: Images, texts: Texts, rows: NDArray[np.int64], request: Request, bad: Bad) -> None:
        """Finds those of these `rows` that cannot be used, where no model needs them, as far as this server can tell.
        Raises LimitExceeded and what the request's check raises."""
        preprocessor = self.learner or self.reference
        if preprocessor is None:
            return
        # What fits no model, all candidates alike, needs to fit none.
        with suppress(InvalidRequest, NotPossible):
            preprocessor.pixels(images, request.check, bad, rows)
        with suppress(InvalidRequest, NotPossible):
            preprocessor.tokens(texts, request.check, bad, rows)


def _input(
    preprocessor: Preprocessor,
    images: Images,
    texts: Texts,
    rows: NDArray[np.int64],
    request: Request,
    bad: Bad | None,
) -> ModelInput:
    pixels = preprocessor.pixels(images, request.check, bad, rows)
    tokens = preprocessor.tokens(texts, request.check, bad, rows)
    return ModelInput(pixels, tokens).at(rows)


def _stacked(parts: Sequence[tuple[NDArray[Any], NDArray[np.int64] | None]], count: int) -> NDArray[Any]:
    """The rows of all parts, one behind the other; None stands for all rows of a part."""
    first, start = parts[0][0], 0
    out = np.empty((count, *first.shape[1:]), first.dtype)
    for array, rows in parts:
        stop = start + len(array if rows is None else rows)
        if rows is None:
            out[start:stop] = array
        else:
            np.take(array, rows, axis=0, out=out[start:stop], mode="clip")  # Any other mode makes a copy first.
        start = stop
    return out
