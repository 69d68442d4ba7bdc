"""A pool through a reference, batch by batch, with a cache or without: what `cache fill` and `reference` share."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selector_server.encoding import bundle as bundles
from selector_server.encoding.cache import Found, ReferenceCache
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.encoding.preprocess import Limits, Preprocessor
from selector_server.machine import usable_cpus
from selector_server.sampling import Embedded
from selector_tools.pools.pool import Batch, Pool
from selector_tools.pools.reading import MAX_DECODED_BYTES, MAX_IMAGE_PIXELS, Inputs, Skipped, read_batch

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """The readable pairs of a batch and their embeddings, on the CPU. `fresh` of them were computed now; `kept` is
    False if the cache has no room for those."""

    batch: Batch
    embedded: Embedded
    fresh: int
    kept: bool


@dataclass(frozen=True)
class _Prepared:
    batch: Batch
    found: Found | None
    unknown: Inputs


@dataclass(frozen=True)
class Embedder:
    """A reference, what it takes, and what it has embedded before."""

    model: Model
    preprocessor: Preprocessor
    cache: ReferenceCache | None
    skipped: Skipped = field(default_factory=Skipped)

    def run(self, pool: Pool, place: str, size: int) -> Iterator[Seen]:
        """All pairs of `pool`, which came from `place`, `size` at a time; the next ones are read meanwhile. Raises
        SelectorError."""
        for prepared in _ahead(self._prepare(batch) for batch in pool.batches(size)):
            if len(prepared.batch):
                yield self._embed(prepared)
        self.skipped.check(place)

    def encode(self, inputs: Inputs) -> Embedded:
        """Embeddings of n samples, rows of length one."""
        return self.model.encode(inputs.pixels, inputs.tokens, self.model.constant_weights())

    def _prepare(self, batch: Batch) -> _Prepared:
        self.skipped.seen += len(batch)
        found = None if self.cache is None else self.cache.find(batch.keys)
        known = np.zeros(len(batch), np.bool_) if found is None else found.known
        rows = np.flatnonzero(~known)
        inputs = read_batch(self.preprocessor, batch.at(rows), self.skipped)
        readable = known.copy()
        readable[rows[inputs.rows]] = True
        if found is not None:
            found = Found(known[readable], found.image, found.text)
        return _Prepared(batch.at(np.flatnonzero(readable)), found, inputs)

    def _embed(self, prepared: _Prepared) -> Seen:
        unknown, found, kept = prepared.unknown, prepared.found, True
        fresh = self.encode(unknown) if len(unknown.batch) else None
        if found is None:
            assert fresh is not None
            embedded = Embedded(fresh.image.cpu(), fresh.text.cpu(), fresh.scale, fresh.bias)
            return Seen(prepared.batch, embedded, len(embedded), kept)
        weights, known = self.model.constant_weights(), torch.from_numpy(found.known)
        image, text = (_merged(known, part) for part in (found.image, found.text))
        if fresh is not None:
            assert self.cache is not None
            image[~known], text[~known] = fresh.image.cpu().half(), fresh.text.cpu().half()
            kept = self.cache.put(unknown.batch.keys, image[~known].numpy(), text[~known].numpy())
        embedded = Embedded(image.float(), text.float(), weights.scale, weights.bias)
        return Seen(prepared.batch, embedded, len(unknown.batch), kept)


@contextmanager
def embedder(
    reference: Path, device: str, threads: int, cache: Path | None = None, cache_bytes: int = 0
) -> Iterator[Embedder]:
    """The reference's bundle on `device`, with the cache in the folder `cache`. Raises SetupError."""
    threads = threads or usable_cpus()
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        bundle, place = bundles.load(reference, "reference"), Device(device, threads)
        model = Model(bundle, place, place.kind.micro_batch)
        model.warm_up(model.constant_weights())
        decoder = stack.enter_context(Decoder(threads))
        preprocessor = Preprocessor.of(bundle, Limits(MAX_IMAGE_PIXELS, MAX_DECODED_BYTES), decoder)
        store = None
        if cache is not None:
            manifest = bundle.manifest
            store = ReferenceCache(cache, manifest.name, bundle.fingerprint, manifest.width, cache_bytes)
            stack.callback(store.close)
        yield Embedder(model, preprocessor, store)


def _merged(known: Tensor, part: NDArray[np.float16]) -> Tensor:
    """float16 [B, D] with `part` where `known`."""
    rows = torch.empty((len(known), part.shape[1]), dtype=torch.float16)
    rows[known] = torch.from_numpy(part)
    return rows


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; the next one is made on a thread while one is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as executor:
        job = executor.submit(next, iterator, None)
        while (item := job.result()) is not None:
            job = executor.submit(next, iterator, None)
            yield item
