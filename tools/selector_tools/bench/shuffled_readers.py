"""What reads shards and shuffles them: libraries by their own means, and the client's InterleavedShards. All are given
the same shards, whose samples are the numbers of their rows, and give one epoch of super-batches."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from selector_client import InterleavedShards
from selector_client.loading.dataset import SuperBatches

from selector_tools.export.torchvision import make_importable

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Shuffled:
    """The super-batches of one epoch, int64 [B] each, and the setting that makes them, as one would write it."""

    setting: str
    super_batches: Iterable[Rows]


@dataclass(frozen=True)
class Layout:
    """A pool's rows in shards, which are written into `folder` in each library's own form when it asks for them; how
    large super-batches are (B); and how many shards are read in turns and samples mixed where a library can."""

    folder: Path
    shards: Sequence[Rows]
    size: int
    at_once: int
    buffer: int
    seed: int

    @property
    def shard_of(self) -> Rows:
        """The shard of each row."""
        return np.repeat(np.arange(len(self.shards)), [len(rows) for rows in self.shards])

    @cached_property
    def tars(self) -> list[str]:
        """WebDataset's shards."""
        import webdataset  # noqa: PLC0415 - as are the others, it is loaded if it is asked for

        files = [str(self.folder / f"{number:05}.tar") for number in range(len(self.shards))]
        for file, rows in zip(files, self.shards, strict=True):
            with webdataset.TarWriter(file) as writer:
                for row in rows.tolist():
                    writer.write({"__key__": f"{row:09}", "row.cls": row})
        return files

    @cached_property
    def tables(self) -> list[str]:
        """Parquet files."""
        import pyarrow  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        files = [str(self.folder / f"{number:05}.parquet") for number in range(len(self.shards))]
        for file, rows in zip(files, self.shards, strict=True):
            parquet.write_table(pyarrow.table({"row": rows}), file, row_group_size=128)
        return files


def in_super_batches(rows: Iterable[int], size: int) -> Iterator[Rows]:
    """Yields so many rows at a time, and leaves out what does not fill a super-batch."""
    iterator = iter(rows)
    while len(some := list(islice(iterator, size))) == size:
        yield np.array(some, np.int64)


def _plain(layout: Layout) -> Iterator[Shuffled]:
    order = np.concatenate(layout.shards)
    yield Shuffled("none: shards and samples as stored", in_super_batches(order, layout.size))
    yield Shuffled("SelectingLoader.over: all samples", SuperBatches(len(order), layout.size, seed=layout.seed))


def _interleaved(layout: Layout) -> Iterator[Shuffled]:
    def read(number: int) -> list[int]:
        rows: list[int] = layout.shards[number].tolist()
        return rows

    numbers = range(len(layout.shards))
    for buffer, at_once in product((layout.buffer // 5, layout.buffer), (1, layout.at_once)):
        stream = InterleavedShards(numbers, read, layout.size, at_once=at_once, buffer=buffer, seed=layout.seed)
        yield Shuffled(f"at_once={at_once}, buffer={buffer}", (np.array(rows) for rows in stream))


def _webdataset(layout: Layout) -> Iterator[Shuffled]:
    import webdataset as wds  # noqa: PLC0415

    count, buffer, at_once = len(layout.shards), layout.buffer, layout.at_once

    def dataset(files: list[str]) -> Any:
        return wds.WebDataset(files, shardshuffle=len(files), detshuffle=True, seed=layout.seed)

    def rows(samples: Iterable[Mapping[str, Any]]) -> Iterator[Rows]:
        random.seed(layout.seed)  # RandomMix draws from it
        return in_super_batches((int(sample["row.cls"]) for sample in samples), layout.size)

    shuffled = f"shardshuffle={count}"
    yield Shuffled(shuffled, rows(dataset(layout.tars)))
    for size in (buffer // 5, buffer):
        setting = f"{shuffled}, shuffle({size}, initial={size})"
        yield Shuffled(setting, rows(dataset(layout.tars).shuffle(size, initial=size)))
    parts = [layout.tars[number::at_once] for number in range(at_once)]
    for size in (buffer // 5, buffer):
        mix = wds.RandomMix([dataset(part) for part in parts], longest=True)
        mixed = wds.DataPipeline(mix, wds.shuffle(size, initial=size, seed=layout.seed))
        yield Shuffled(f"RandomMix of {at_once}, shuffle({size}, initial={size})", rows(mixed))


def _huggingface(layout: Layout) -> Iterator[Shuffled]:
    import datasets  # noqa: PLC0415

    for size, shards in product((layout.buffer // 5, layout.buffer), (1, layout.at_once)):
        data = datasets.load_dataset("parquet", data_files=layout.tables, split="train", streaming=True)
        mixed = data.shuffle(seed=layout.seed, buffer_size=size, max_buffer_input_shards=shards)
        setting = f"shuffle(buffer_size={size}, max_buffer_input_shards={shards})"
        yield Shuffled(setting, in_super_batches((sample["row"] for sample in mixed), layout.size))


def _mosaicml(layout: Layout) -> Iterator[Shuffled]:
    make_importable()
    import streaming  # noqa: PLC0415
    from streaming.base.util import clean_stale_shared_memory  # noqa: PLC0415

    folder = str(layout.folder / "mds")
    index_bytes, sample_bytes = 200, 12  # of a shard, and of a row in it
    limit = index_bytes + sample_bytes * len(layout.shards[0])
    with streaming.MDSWriter(out=folder, columns={"row": "int"}, size_limit=limit) as writer:
        for row in np.concatenate(layout.shards).tolist():
            writer.write({"row": row})

    def rows(**options: Any) -> Iterator[Rows]:
        clean_stale_shared_memory()
        data = streaming.StreamingDataset(local=folder, batch_size=layout.size, shuffle_seed=layout.seed, **options)
        return in_super_batches((sample["row"] for sample in data), layout.size)

    block = layout.buffer
    yield Shuffled("shuffle=True, shuffle_algo='py1s'", rows(shuffle=True, shuffle_algo="py1s"))
    for name in ("py1br", "py1e"):
        setting = f"shuffle=True, shuffle_algo='{name}', shuffle_block_size={block}"
        yield Shuffled(setting, rows(shuffle=True, shuffle_algo=name, shuffle_block_size=block))
    yield Shuffled("shuffle=True (py1e, blocks of 4,000,000)", rows(shuffle=True))


def _litdata(layout: Layout) -> Iterator[Shuffled]:
    make_importable()
    import litdata  # noqa: PLC0415

    def written(name: str, shards: Sequence[Rows]) -> str:
        folder = str(layout.folder / name)
        cache = litdata.streaming.Cache(folder, chunk_size=len(layout.shards[0]))
        for index, row in enumerate(np.concatenate(shards).tolist()):
            cache[index] = {"row": row}
        cache.done()
        cache.merge()
        return folder

    def rows(data: Any) -> Iterator[Rows]:
        return in_super_batches((int(sample["row"]) for sample in data), layout.size)

    def dataset(folder: str, **options: Any) -> Any:
        return litdata.StreamingDataset(folder, shuffle=True, seed=layout.seed, **options)

    whole = written("litdata", layout.shards)
    yield Shuffled("shuffle=True", rows(dataset(whole)))
    yield Shuffled("shuffle=True, item_shuffle_window='full'", rows(dataset(whole, item_shuffle_window="full")))
    count = layout.at_once
    parts = [written(f"litdata-{number}", layout.shards[number::count]) for number in range(count)]
    mixed = litdata.CombinedStreamingDataset([dataset(part) for part in parts], seed=layout.seed)
    yield Shuffled(f"CombinedStreamingDataset of {count}", rows(mixed))


READERS: Mapping[str, Callable[[Layout], Iterator[Shuffled]]] = {
    "any": _plain,
    "InterleavedShards": _interleaved,
    "webdataset": _webdataset,
    "datasets": _huggingface,
    "streaming": _mosaicml,
    "litdata": _litdata,
}


def installed(reader: str) -> bool:
    """Whether there is what this reader needs."""
    return reader in ("any", "InterleavedShards") or find_spec(reader) is not None
