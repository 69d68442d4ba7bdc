"""Scores the shards of a pool on a Ray cluster. Ray Data hands shards to actors, of which each holds one reference on
one device, and takes back no more than what is said of a shard: the actors write the scores themselves, whole or not at
all. So whatever of the cluster is killed, nothing is lost, and what is written is not made again."""

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import selector_proto

from selector_server.errors import SelectorError, SetupError
from selector_tools.embedding import Embedder, embedder
from selector_tools.pools import storage
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.pool import Shard
from selector_tools.pools.scores import About, OfShard, name_of
from selector_tools.reference.ray_cluster import joined
from selector_tools.reference.scoring import score, scored_before

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A block of shards is what an actor takes at once. Each costs the driver some milliseconds, so that there are not more.
MOST_BLOCKS = 2048


@dataclass(frozen=True)
class Job:
    """What every actor does: reads the reference's bundle, which must be on its node too, and writes to `out`, `batch`
    pairs at a time, with so many CPU threads. Relative places are relative to `folder`."""

    reference: Path
    device: str
    threads: int
    batch: int
    out: str
    strict: bool
    expected: About
    folder: str
    version: str = selector_proto.__version__


@dataclass(frozen=True)
class Workers:
    """How many actors there are: at least `fewest`, and at most `most`, or as many as the cluster has room for. So many
    share a GPU where they have one: each keeps a reference there, and encodes while others prepare their pairs."""

    fewest: int = 1
    most: int | None = None
    on_a_gpu: int = 1


def score_on_ray(job: Job, shards: Sequence[Shard], address: str, workers: Workers) -> Iterator[OfShard]:
    """Scores shards on the cluster at `address` (see `joined`), and yields what the file of each says once it is
    written, in no order. Raises SelectorError; what is written by then stays."""
    with joined(address):
        for row in _rows(job, shards, workers):
            if row["wrong"]:
                raise SetupError(*json.loads(row["wrong"]))
            yield OfShard(**json.loads(row["done"]))


def _rows(job: Job, shards: Sequence[Shard], workers: Workers) -> Iterator[dict[str, Any]]:
    from ray import data  # noqa: PLC0415 - nobody else needs the extra

    context = data.DataContext.get_current()
    context.enable_progress_bars = False  # the command has its own
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    count = min(len(items), MOST_BLOCKS)
    blocks = data.from_items(items, override_num_blocks=count)
    done = blocks.map_batches(
        Scorer,
        batch_size=len(items) // count,  # of a block; with GPUs, Ray wants it said
        fn_constructor_args=(job,),
        compute=data.ActorPoolStrategy(min_size=workers.fewest, max_size=workers.most),
        num_cpus=job.threads,
        # Ray counts hundred-thousandths of a GPU, of which all shares together must not be more than one.
        num_gpus=0 if job.device == "cpu" else 10_000 // workers.on_a_gpu / 10_000,
    )
    yield from done.iter_rows()


class Scorer:
    """The actor. What goes wrong in it is a row too, so that the driver can say it in one line."""

    def __init__(self, job: Job) -> None:
        self._job, self._stack = job, ExitStack()
        self._reference: Embedder | None = None

    def __call__(self, block: "dict[str, NDArray[Any]]") -> Iterator[dict[str, list[str]]]:
        """Scores the pickled shards of a block. Yields a row for each, and one for what ended it before its time."""
        try:
            for of_shard in self._scored([pickle.loads(each) for each in block["shard"]]):  # noqa: S301 - our driver's
                yield {"done": [json.dumps(asdict(of_shard))], "wrong": [""]}
        except SelectorError as error:
            where = f"{error.limit} (on node {_node()})"
            yield {"done": [""], "wrong": [json.dumps([error.field, error.value, where])]}

    def _scored(self, shards: Sequence[Shard]) -> Iterator[OfShard]:
        job, left = self._job, list[Shard]()
        if self._reference is None:  # and not at the actor's start, where Ray has no row for what goes wrong
            self._reference = self._loaded()
        for shard in shards:
            # One that was killed after it had written a shard, and before it could say so, is asked again.
            there = storage.kind(storage.joined(job.out, name_of(shard.name)), "--out")
            if there and (of_shard := scored_before(shard, job.out, job.expected)):
                yield of_shard
            else:
                left.append(shard)
        yield from score(self._reference, left, job.out, job.batch)

    def _loaded(self) -> Embedder:
        job = self._job
        if selector_proto.__version__ != job.version:
            raise SetupError("jest-selector", selector_proto.__version__, f"must be {job.version}, as for who asks")
        with suppress(OSError):
            os.chdir(job.folder)
        exclusions = Exclusions(job.strict)
        reference = self._stack.enter_context(embedder(job.reference, job.device, job.threads, exclusions=exclusions))
        if (fingerprint := reference.model.bundle.fingerprint) != job.expected.fingerprint:
            limit = f"must be {job.expected.fingerprint[:16]} on every node"
            raise SetupError("--reference", f"{job.reference} with fingerprint {fingerprint[:16]}", limit)
        return reference


def _node() -> str:
    import ray  # noqa: PLC0415 - nobody else needs the extra

    return str(ray.util.get_node_ip_address())
