"""Loaders over the streams of data that people train CLIP with, over epochs and resumed in the middle of them: each
sample comes as often, and in the same sub-batch, as without the interruption."""

import io
import json
import logging
from collections.abc import Mapping

import numpy as np
import pyarrow
import pytest
import torch
import webdataset as wds
from pyarrow import parquet
from selector_client import InterleavedShards, SelectingLoader
from selector_tools.export.torchvision import make_importable
from support.loaders import Chooser
from support.processes import eventually

ROWS, SIZE = 240, 40
EPOCH = ROWS // SIZE


def library(name):
    """The module of that name, or a skip that says that it is missing."""
    make_importable()  # some import torchvision
    reason = f"NOT TESTED: {name} is not installed (make test-integration installs it)"
    return pytest.importorskip(name, reason=reason)


class Source:
    """Makes the loader of a trainer over some library's stream, anew for each process that trains."""

    workers = (0,)

    def __init__(self, folder):
        self.folder = folder

    def stream(self, workers):
        raise NotImplementedError

    def loader(self, workers, seed=5, **options):
        options = {"view": self.view, "take": self.take, "prefetch": 0} | options
        return SelectingLoader(self.stream(workers), Chooser(seed), **options)

    def view(self, batch):
        return {"images": batch["row"], "texts": batch["text"]}

    def take(self, batch, picks):
        return np.asarray(batch["row"])[picks].tolist()


class Torchdata(Source):
    workers = (0, 2)

    def stream(self, workers):
        module = library("torchdata.stateful_dataloader")
        rows = [{"row": row, "text": f"w{row}"} for row in range(ROWS)]
        return module.StatefulDataLoader(rows, batch_size=SIZE, shuffle=True, num_workers=workers)


class Mosaicml(Source):
    workers = (0, 2)

    def stream(self, workers):
        streaming = library("streaming")
        folder = self.folder / "mds"
        if not folder.exists():
            with streaming.MDSWriter(out=str(folder), columns={"row": "int", "text": "str"}, size_limit=4000) as writer:
                for row in range(ROWS):
                    writer.write({"row": row, "text": f"w{row}"})
        streaming.base.util.clean_stale_shared_memory()
        data = streaming.StreamingDataset(local=str(folder), batch_size=SIZE, shuffle=True, shuffle_seed=7)
        return streaming.StreamingDataLoader(data, batch_size=SIZE, num_workers=workers)


class Litdata(Source):
    workers = (0, 2)

    def stream(self, workers):
        litdata = library("litdata")
        folder = self.folder / "litdata"
        if not folder.exists():
            cache = litdata.streaming.Cache(str(folder), chunk_bytes=4000)
            for row in range(ROWS):
                cache[row] = {"row": row, "text": f"w{row}"}
            cache.done()
            cache.merge()
        data = litdata.StreamingDataset(str(folder), shuffle=True, seed=7)
        return litdata.StreamingDataLoader(data, batch_size=SIZE, num_workers=workers)


class HuggingFace(Source):
    def stream(self, workers):
        datasets = library("datasets")
        table = {"row": list(range(ROWS)), "text": [f"w{row}" for row in range(ROWS)]}
        return datasets.Dataset.from_dict(table).to_iterable_dataset(num_shards=4).shuffle(seed=7).batch(SIZE)


class Webdataset(Source):
    """Shards in their order, which every epoch repeats. It has no state, so that what was yielded is drawn again."""

    options: Mapping = {"shardshuffle": False}
    buffer = 0

    def stream(self, workers):
        self.folder.mkdir(exist_ok=True)
        for shard in range(4):
            path = self.folder / f"{shard}.tar"
            if not path.exists():
                with wds.TarWriter(str(path)) as writer:
                    for row in range(shard * ROWS // 4, (shard + 1) * ROWS // 4):
                        writer.write({"__key__": f"{row:04}", "txt": f"w{row}", "row.cls": row})
        data = wds.WebDataset(str(self.folder / "{0..3}.tar"), **self.options)
        return (data.shuffle(self.buffer) if self.buffer else data).batched(SIZE, collation_fn=list)

    def view(self, batch):
        return {"images": batch, "texts": [sample["txt"] for sample in batch]}

    def take(self, batch, picks):
        return [int(batch[pick]["row.cls"]) for pick in picks]


class InterleavedWebdataset(Webdataset):
    """The same shards, a few at a time, mixed."""

    def stream(self, workers):
        super().stream(workers)
        shards = [str(self.folder / f"{number}.tar") for number in range(4)]
        return InterleavedShards(shards, self.read, SIZE, at_once=3, buffer=70, seed=3)

    @staticmethod
    def read(shard):
        return wds.DataPipeline(wds.SimpleShardList([shard]), wds.tarfile_to_samples())


class InterleavedParquet(Source):
    """Parquet files, a few at a time, mixed."""

    def stream(self, workers):
        self.folder.mkdir(exist_ok=True)
        files = [str(self.folder / f"{number}.parquet") for number in range(4)]
        for file, rows in zip(files, np.array_split(np.arange(ROWS), 4), strict=True):
            table = pyarrow.table({"row": rows, "text": [f"w{row}" for row in rows]})
            parquet.write_table(table, file, row_group_size=16)
        return InterleavedShards(files, self.read, SIZE, at_once=3, buffer=70, seed=3)

    @staticmethod
    def read(file):
        for batch in parquet.ParquetFile(file).iter_batches(16):
            yield from batch.to_pylist()

    def view(self, batch):
        return {"images": batch, "texts": [sample["text"] for sample in batch]}

    def take(self, batch, picks):
        return [batch[pick]["row"] for pick in picks]


class WebdatasetInAnOrderOfTheSeed(Webdataset):
    options: Mapping = {"shardshuffle": 4, "detshuffle": True, "seed": 3}


class WebdatasetAtRandom(Webdataset):
    options: Mapping = {"shardshuffle": 4}
    buffer = 100


def train(loader, count):
    found = []
    while len(found) < count:
        before = len(found)
        for batch in loader:
            found.append(batch)
            if len(found) == count:
                break
        assert len(found) > before, "an epoch has nothing"
    return found


def saved(loader):
    """As torch.save keeps it; where the source's own state is plain, so is all of it."""
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def cases(*sources):
    return [
        pytest.param(source, workers, id=f"{source.__name__}-{workers}")
        for source in sources
        for workers in source.workers
    ]


ALL = (Torchdata, Mosaicml, Litdata, HuggingFace, Webdataset, InterleavedWebdataset, InterleavedParquet)
needs_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@needs_fork
@pytest.mark.parametrize(("source", "workers"), cases(*ALL, WebdatasetInAnOrderOfTheSeed))
def test_every_epoch_has_every_super_batch(tmp_path, source, workers):
    loader = source(tmp_path).loader(workers, take=None if source in ALL[:4] else source(tmp_path).take)
    assert [len(list(loader)) for _ in range(3)] == [EPOCH] * 3


@needs_fork
@pytest.mark.parametrize("stop", [2, EPOCH, EPOCH + 3])
@pytest.mark.parametrize(("source", "workers"), cases(*ALL))
def test_a_resumed_trainer_sees_what_it_would_have_seen(tmp_path, source, workers, stop, caplog):
    kind, total = source(tmp_path), 3 * EPOCH
    torch.manual_seed(1)
    wanted = train(kind.loader(workers), total)
    torch.manual_seed(1)
    one = kind.loader(workers)
    found = train(one, stop)
    state = saved(one)
    one.close()
    torch.manual_seed(2)
    two = kind.loader(workers, seed=99, strict_resume=True)
    two.load_state_dict(state)
    found += train(two, total - stop)
    assert found == wanted
    assert two.progress.steps == total
    for epoch in range(3):
        rows = [row for batch in wanted[epoch * EPOCH : (epoch + 1) * EPOCH] for row in batch]
        assert len(set(rows)) == len(rows) == ROWS // 4, "a quarter of all, and none twice"


@needs_fork
@pytest.mark.parametrize(("source", "workers"), cases(*ALL))
def test_picks_made_ahead_are_resumed_too(tmp_path, source, workers):
    kind = source(tmp_path)
    torch.manual_seed(1)
    wanted = train(kind.loader(workers), 2 * EPOCH)
    torch.manual_seed(1)
    one = kind.loader(workers, prefetch=2)
    iterator = iter(one)
    found = [next(iterator), next(iterator)]
    eventually(lambda: len(one.state_dict()["ahead"]) == 2)
    state = saved(one)
    iterator.close()
    two = kind.loader(workers, seed=99, strict_resume=True)
    two.load_state_dict(state)
    assert found + train(two, 2 * EPOCH - 2) == wanted


def test_shards_in_an_order_of_the_seed_are_resumed_within_the_first_epoch_and_told_after_it(tmp_path, caplog):
    """WebDataset counts its epochs in memory, so that a new process begins with the order of the first."""
    kind = WebdatasetInAnOrderOfTheSeed(tmp_path)
    wanted = train(kind.loader(0), 2 * EPOCH)
    assert wanted[:EPOCH] != wanted[EPOCH:]
    for stop, repeats in ((2, True), (EPOCH + 2, False)):
        caplog.clear()
        one = kind.loader(0)
        found = train(one, stop)
        two = kind.loader(0, seed=99)
        two.load_state_dict(saved(one))
        with caplog.at_level(logging.WARNING):
            found += train(two, 3)
        assert (found == wanted[: stop + 3]) is repeats
        assert ("did not repeat their order" in caplog.text) is not repeats


def test_shards_at_random_are_told(tmp_path, caplog):
    kind = WebdatasetAtRandom(tmp_path)
    one = kind.loader(0)
    train(one, 3)
    two = kind.loader(0)
    two.load_state_dict(saved(one))
    with caplog.at_level(logging.WARNING):
        assert len(train(two, 3)) == 3
    assert "did not repeat their order" in caplog.text
    strict = kind.loader(0, strict_resume=True)
    strict.load_state_dict(saved(one))
    with pytest.raises(ValueError, match="did not repeat their order"):
        train(strict, 1)


@pytest.mark.parametrize("source", [Mosaicml, Litdata, Webdataset, HuggingFace, InterleavedParquet])
def test_these_states_are_plain(tmp_path, source):
    """So that transformers' Trainer, which writes JSON, can keep them."""
    one = source(tmp_path).loader(0)
    train(one, 2)
    state = one.state_dict()
    assert json.loads(json.dumps(state))["steps"] == 2
