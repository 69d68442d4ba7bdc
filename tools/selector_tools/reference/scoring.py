"""Scores the shards of a pool, and writes each one's file when all of the shard was seen."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from selector_server.encoding.bundle import Bundle
from selector_server.encoding.image_files import DECODER
from selector_server.errors import SetupError
from selector_server.sampling import Embedded
from selector_tools.embedding import Embedder, Seen
from selector_tools.pools import scores, storage
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.pool import Known, Namespace, Shard
from selector_tools.reference.separation import losses

_AT_ONCE = 16  # So many files are looked at side by side: a store answers each after a while.


def about(reference: Bundle, ids: Namespace) -> scores.About:
    """Returns what all scores of this reference share."""
    manifest = reference.manifest
    assert manifest.logit_scale is not None
    width, scale, bias = manifest.width, manifest.logit_scale, manifest.logit_bias
    return scores.About(reference.fingerprint, manifest.name, width, scale, bias, DECODER, ids)


@dataclass(frozen=True)
class Plan:
    """Which shards have their scores in a folder already, and which are `left`. `strangers` are files of scores there
    that belong to none of the shards."""

    done: list[scores.OfShard]
    left: list[Shard]
    strangers: list[str]


def plan(shards: Sequence[Shard], folder: str, expected: scores.About) -> Plan:
    """Looks at what is in `folder`. A shard whose file has changed since it was scored is left, too. Raises SetupError
    if there are scores of another reference, or of other ids."""
    if storage.kind(folder, "--out") == "file":
        raise SetupError("--out", folder, "is a file; must be a folder, with a file for each shard")
    storage.sweep(folder)
    # A store, or a path, may be written in several ways, so that the files' names are compared.
    there = {file.rpartition("/")[2] for file in scores.files_in(folder, "--out")}
    names = {scores.name_of(shard.name): shard for shard in shards}

    done, left = [], []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        looks = {
            name: pool.submit(scored_before, shard, folder, expected) for name, shard in names.items() if name in there
        }
        for name, shard in names.items():
            of_shard = looks[name].result() if name in looks else None
            if of_shard is None:
                left.append(shard)
            else:
                done.append(of_shard)
    return Plan(done, left, sorted(there - names.keys()))


def scored_before(shard: Shard, folder: str, expected: scores.About) -> scores.OfShard | None:
    """Returns what a shard's file of scores in `folder`, which must be there, says of it; None if the shard has changed
    since. Raises SetupError if it has scores of another reference, or of other ids."""
    file = storage.joined(folder, scores.name_of(shard.name))
    found, of_shard = scores.header(file)
    scores.check(found, expected, file)
    return of_shard if of_shard.stamp == storage.stamp(shard.place) else None


def score(
    reference: Embedder,
    shards: Sequence[Shard],
    folder: str,
    size: int,
    known: Known | None = None,
    on_seen: Callable[[Seen], None] = lambda _: None,
) -> Iterator[scores.OfShard]:
    """Scores shards, `size` pairs at a time, and yields what the file of each says once it is written. `known` has the
    names of pairs that count as repeated; `on_seen` hears of each batch. Raises SelectorError; what is
    written by then stays."""
    with ExitStack() as stack:
        writer: scores.Writer | None = None
        stamp = ""
        for shard, found in reference.run_shards(shards, size, known):
            if writer is None:
                stamp = storage.stamp(shard.place)
                place = storage.joined(folder, scores.name_of(shard.name))
                writer = stack.enter_context(scores.writing(place, about(reference.model.bundle, shard.ids)))
            if isinstance(found, Exclusions):
                of_shard = writer.close(shard.name, stamp, found.as_json())
                stack.close()
                writer = None
                yield of_shard
            else:
                writer.add(_scored(found))
                on_seen(found)


def _scored(seen: Seen) -> scores.Scores:
    """Rounds the embeddings as they are kept, and computes the rest of what is kept."""
    image, text = seen.embedded.image.half(), seen.embedded.text.half()
    kept = Embedded(image.float(), text.float(), seen.embedded.scale, seen.embedded.bias)
    cosine = (kept.image * kept.text).sum(dim=1).numpy()
    ids = seen.batch.ids
    loss = losses(kept).astype(np.float32)
    return scores.Scores(ids, loss, cosine, image.numpy(), text.numpy(), seen.batch.tags)
