"""What raw samples need before the device does: known reference embeddings, decoded images, tokens. It runs beside the
device's thread, one thread a request; files are decoded on a bounded pool."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding.image_files import decoded_alike
from selector_server.encoding.preprocess import Preprocessor
from selector_server.encoding.reference_cache import Found, ReferenceCache
from selector_server.engine.request import Request
from selector_server.errors import InvalidRequest, NotPossible

_FITS_BOTH = "send files and strings, which fit both, or fill its cache"

Images = NDArray[np.uint8] | list[bytes]
Texts = NDArray[np.integer[Any]] | list[bytes]


@dataclass(frozen=True)
class ModelInput:
    """What one model encodes: pixels uint8 [n, H, W, C] and tokens int64 [n, T]."""

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]

    def at(self, rows: NDArray[np.int64]) -> "ModelInput":
        """Some of the rows; all of them are not copied."""
        return self if len(rows) == len(self.pixels) else ModelInput(self.pixels[rows], self.tokens[rows])


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

    def find(self, ids: list[bytes], images: Images, request: Request) -> Found | None:
        """What the cache knows of the candidates of these ids; None without a cache or ids. Of files it may take over
        what an earlier version knew of them."""
        if self.cache is None or not ids:
            return None
        with request.timed("cache"):
            files = images if isinstance(images, list) else None
            return self.cache.find(ids, None if files is None else lambda index: decoded_alike(files[index]))

    def learner_input(self, images: Images, texts: Texts, request: Request) -> ModelInput | None:
        """What the learner encodes. Raises InvalidRequest, LimitExceeded, NotPossible, and what the request's check
        raises."""
        return None if self.learner is None else _input(self.learner, images, texts, request)

    def reference_input(
        self, images: Images, texts: Texts, learner: ModelInput | None, found: Found | None, request: Request
    ) -> ModelInput | None:
        """What the reference encodes: the candidates that `found` lacks. Raises as `learner_input` does; an input that
        fits the learner alone is not possible."""
        if self.reference is None:
            return None
        rows = np.arange(len(images)) if found is None else np.flatnonzero(~found.known)
        if not len(rows):
            return None
        if learner is not None and self.learner is not None and self.learner.same_input(self.reference):
            return learner.at(rows)
        tokens = isinstance(texts, np.ndarray)
        if tokens and self.learner is not None and not self.learner.same_tokens(self.reference):
            raise NotPossible("samples.tokens", "set", f"the reference has a tokenizer of its own; {_FITS_BOTH}")
        try:
            return _input(self.reference, _at(images, rows), _at(texts, rows), request)
        except InvalidRequest as error:
            if learner is None:
                raise
            limit = f"{error.limit}; the reference takes other inputs than the learner: {_FITS_BOTH}"
            raise NotPossible(f"reference, {error.field}", error.value, limit) from error


def _at(part: NDArray[Any] | list[bytes], rows: NDArray[np.int64]) -> Any:
    if len(rows) == len(part):
        return part
    return part[rows] if isinstance(part, np.ndarray) else [part[row] for row in rows]


def _input(preprocessor: Preprocessor, images: Images, texts: Texts, request: Request) -> ModelInput:
    return ModelInput(preprocessor.pixels(images, request.check), preprocessor.tokens(texts, request.check))
