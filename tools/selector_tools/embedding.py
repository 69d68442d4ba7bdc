"""Takes a pool through a reference, batch by batch, with a cache or without: `cache fill` and `reference` share it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from selector_client.loading.prefetch import prefetched

from selector_server.encoding import bundle as bundles
from selector_server.encoding.decoder import Decoder
from selector_server.encoding.device import Device
from selector_server.encoding.image_files import decoded_alike
from selector_server.encoding.model import Model
from selector_server.encoding.preprocess import Preprocessor
from selector_server.encoding.reference_cache import Found, ReferenceCache
from selector_server.machine import usable_cpus
from selector_server.sampling import Embedded
from selector_server.sampling.threads import use_threads
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.pool import Batch, Known, Pairs, Shard
from selector_tools.pools.reading import LIMITS, Inputs, read_batch
from selector_tools.progress import bar


@dataclass(frozen=True)
class Seen:
    """The usable pairs of a batch and their embeddings, on the CPU. `fresh` of them were computed now; `kept` is
    False if the cache has no room for those."""

    batch: Batch
    embedded: Embedded
    fresh: int
    kept: bool


@dataclass(frozen=True)
class _Prepared:
    """The usable pairs of a batch, what the cache knows of them, and what must be encoded."""

    batch: Batch
    found: Found | None
    unknown: Inputs


@dataclass(frozen=True)
class Embedder:
    """A reference, the preprocessor of its inputs, and perhaps a cache of what it has embedded before. `exclusions`
    counts what cannot be used."""

    model: Model
    preprocessor: Preprocessor
    cache: ReferenceCache | None
    exclusions: Exclusions = field(default_factory=Exclusions)

    def run(self, pool: Pairs, place: str, size: int, what: str = "embed", most: int | None = None) -> Iterator[Seen]:
        """Yields the pairs of `pool`, which came from `place`, `size` at a time, and reads the next ones meanwhile. It
        stops after the batch that completes `most` pairs, if that is given. A bar called `what` shows how far it is.
        Raises SelectorError."""
        total, done = pool.size if most is None or pool.size is None else min(pool.size, most), 0
        prepared = (self._prepare(batch, self.exclusions) for batch in pool.batches(size))
        read = closing(prefetched(prepared, 1, "pool-reader"))
        with bar(what, total) as advance, read as batches:
            for found in batches:
                if len(found.batch):
                    yield self._embed(found)
                    advance(len(found.batch))
                    done += len(found.batch)
                if most is not None and done >= most:
                    break
        self.exclusions.check(place)

    def run_shards(
        self, shards: Sequence[Shard], size: int, known: Known | None = None
    ) -> Iterator[tuple[Shard, Seen | Exclusions]]:
        """Yields the pairs of shards, each time with their shard, and reads the next ones meanwhile, those of the next
        shard too. After a shard's last pairs comes what counts those that cannot be used, which `exclusions` counts as
        well. `known` has the names of pairs that count as repeated. Raises SelectorError."""

        def prepare() -> Iterator[tuple[Shard, _Prepared | Exclusions]]:
            for shard in shards:
                exclusions = Exclusions(self.exclusions.strict)
                for batch in shard.batches(size, known):
                    yield shard, self._prepare(batch, exclusions)
                yield shard, exclusions

        with closing(prefetched(prepare(), 1, "pool-reader")) as read:
            for shard, found in read:
                if isinstance(found, Exclusions):
                    self.exclusions.merge(found)
                    yield shard, found
                elif len(found.batch):
                    yield shard, self._embed(found)

    def _prepare(self, batch: Batch, exclusions: Exclusions) -> _Prepared:
        exclusions.begin(batch)
        images = batch.images
        alike = None if isinstance(images, np.ndarray) else lambda row: decoded_alike(images[row])
        found = None if self.cache is None else self.cache.find(batch.keys, alike, wait=True)
        known = np.zeros(len(batch), np.bool_) if found is None else found.known
        rows = np.flatnonzero(~known)
        inputs = read_batch(self.preprocessor, batch.at(rows), exclusions)
        usable = known.copy()
        usable[rows[inputs.rows]] = True
        if found is not None:
            found = Found(known[usable], found.image, found.text)
        return _Prepared(batch.at(np.flatnonzero(usable)), found, inputs)

    def _embed(self, prepared: _Prepared) -> Seen:
        batch, unknown, weights = prepared.batch, prepared.unknown, self.model.constant_weights()
        count = len(unknown.batch)
        fresh = self.model.encode(unknown.pixels, unknown.tokens, weights) if count else None
        if self.cache is None or prepared.found is None:
            assert fresh is not None
            return Seen(batch, Embedded(fresh.image.cpu(), fresh.text.cpu(), fresh.scale, fresh.bias), count, kept=True)
        scale, bias, cpu = weights.scale, weights.bias, torch.device("cpu")
        embedded, kept = self.cache.merge(batch.keys, prepared.found, fresh, scale, bias, cpu, wait=True)
        return Seen(batch, embedded, count, kept)


@contextmanager
def embedder(
    reference: Path,
    device: str,
    threads: int,
    cache: Path | None = None,
    cache_bytes: int = 0,
    exclusions: Exclusions | None = None,
) -> Iterator[Embedder]:
    """Yields the reference of a bundle on `device`, with the cache in the folder `cache`; `threads` is 0 for all
    processors. `exclusions` counts what cannot be used. Raises SetupError."""
    threads = threads or usable_cpus()
    use_threads(threads)
    with ExitStack() as stack:
        bundle, place = bundles.load(reference, "reference"), Device(device)
        model = Model(bundle, place, place.kind.micro_batch)
        model.warm_up(model.constant_weights())
        decoder = stack.enter_context(Decoder(threads))
        preprocessor = Preprocessor.of(bundle, LIMITS, decoder)
        store = None
        if cache is not None:
            manifest = bundle.manifest
            store = ReferenceCache(cache, manifest.name, bundle.fingerprint, manifest.width, cache_bytes)
            stack.callback(store.close)
        yield Embedder(model, preprocessor, store, exclusions or Exclusions())
