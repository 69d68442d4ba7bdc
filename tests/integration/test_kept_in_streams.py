"""What the reference makes of samples, kept in the form of each library that streams data: the loader finds it in the
super-batches as the library gives them."""

import numpy as np
import pyarrow
import pytest
import torch
import webdataset as wds
from pyarrow import parquet
from selector_client import InterleavedShards, Reference, SelectingLoader
from selector_tools.export.torchvision import make_importable
from support.loaders import Chooser

ROWS, SIZE, WIDTH = 80, 20, 4
KEPT = np.random.default_rng(0).standard_normal((ROWS, 2, WIDTH)).astype(np.float16)
SIDES = ("reference_image", "reference_text")


class Shown(Chooser):
    """Remembers which rows it was shown, and what the reference is said to make of them."""

    def __init__(self):
        super().__init__()
        self.rows, self.kept = [], []

    def select(self, images, texts, *, reference, **others):
        assert (reference.fingerprint, reference.logit_scale, reference.logit_bias) == ("x", 20.0, -9.0)
        self.rows += [int(bytes(text) if isinstance(text, bytes) else text) for text in texts]
        self.kept.append(
            np.stack(
                [np.stack([np.asarray(row) for row in side]) for side in (reference.image, reference.text)], axis=1
            )
        )
        return super().select(images, texts, **others)


def mosaicml(folder):
    make_importable()
    streaming = pytest.importorskip("streaming", reason="NOT TESTED: streaming is not installed")
    columns = {"image": "int", "text": "str", "ref.npy": f"ndarray:float16:2,{WIDTH}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=1500) as writer:
        for row in range(ROWS):
            writer.write({"image": row, "text": str(row), "ref.npy": KEPT[row]})
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=str(folder), batch_size=SIZE, shuffle=True, shuffle_seed=7)
    return streaming.StreamingDataLoader(data, batch_size=SIZE)


def litdata(folder):
    make_importable()
    module = pytest.importorskip("litdata", reason="NOT TESTED: litdata is not installed")
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(ROWS), 4)):
        cache = module.streaming.Cache(str(folder / str(number)), chunk_size=7)
        for index, row in enumerate(rows.tolist()):
            cache[index] = {"image": row, "text": str(row), "ref.npy": KEPT[row]}
        cache.done()
        cache.merge()
        parts.append(module.StreamingDataset(str(folder / str(number)), shuffle=True, seed=7))
    return module.StreamingDataLoader(module.CombinedStreamingDataset(parts, seed=7), batch_size=SIZE)


def torchs(folder):
    rows = [{"image": row, "text": str(row), "ref.npy": KEPT[row]} for row in range(ROWS)]
    return torch.utils.data.DataLoader(rows, batch_size=SIZE, shuffle=True)


def tables(folder):
    files = [str(folder / f"{number}.parquet") for number in range(4)]
    for file, rows in zip(files, np.array_split(np.arange(ROWS), 4), strict=True):
        kind = pyarrow.list_(pyarrow.float16(), WIDTH)
        sides = {name: pyarrow.array(list(KEPT[rows, side]), kind) for side, name in enumerate(SIDES)}
        parquet.write_table(pyarrow.table({"image": rows, "text": [str(row) for row in rows], **sides}), file)
    return files


def huggingface(folder):
    import datasets

    data = datasets.load_dataset("parquet", data_files=tables(folder), split="train", streaming=True)
    return data.shuffle(seed=1, buffer_size=30, max_buffer_input_shards=4).batch(SIZE)


def interleaved_tables(folder):
    def read(file):
        for batch in parquet.ParquetFile(file).iter_batches(8):
            yield from batch.to_pylist()

    return InterleavedShards(tables(folder), read, SIZE, at_once=2, buffer=30)


def tars(folder):
    files = [str(folder / f"{number}.tar") for number in range(4)]
    for file, rows in zip(files, np.array_split(np.arange(ROWS), 4), strict=True):
        with wds.TarWriter(file) as writer:
            for row in rows.tolist():
                writer.write({"__key__": str(row), "image.cls": row, "txt": str(row), "ref.npy": KEPT[row]})
    return files


def webdataset(folder):
    parts = [wds.WebDataset(file, shardshuffle=False).decode() for file in tars(folder)]
    return wds.DataPipeline(
        wds.RandomMix(parts, longest=True), wds.shuffle(30, initial=30), wds.batched(SIZE, collation_fn=list)
    )


def webdataset_in_tuples(folder):
    data = wds.WebDataset(tars(folder), shardshuffle=4).shuffle(30).decode()
    return data.to_tuple("image.cls", "txt", "ref.npy").batched(SIZE)


def interleaved_tars(folder):
    def read(shard):
        return wds.DataPipeline(wds.SimpleShardList([shard]), wds.tarfile_to_samples())

    return InterleavedShards(tars(folder), read, SIZE, at_once=2, buffer=30)


def view(batch):
    """Numbers stand for images, whose names only WebDataset's samples have otherwise."""
    if isinstance(batch, list) and isinstance(batch[0], dict):
        return {"images": [0] * len(batch), "texts": [sample.get("txt", sample.get("text")) for sample in batch]}
    return (
        {"images": batch["image"], "texts": batch["text"]}
        if isinstance(batch, dict)
        else dict(zip(("images", "texts"), batch[:2], strict=True))
    )


@pytest.mark.parametrize(
    "stream",
    [mosaicml, litdata, torchs, huggingface, interleaved_tables, webdataset, webdataset_in_tuples, interleaved_tars],
)
def test_it_is_found_in_super_batches_of(tmp_path, stream):
    selector = Shown()
    columns = 2 if stream is webdataset_in_tuples else None
    reference = Reference("x", 20.0, -9.0, WIDTH, columns)
    loader = SelectingLoader(stream(tmp_path), selector, view=view, reference=reference)
    assert len(list(loader)) == ROWS // SIZE
    assert sorted(selector.rows) == list(range(ROWS))
    found = np.concatenate(selector.kept)
    np.testing.assert_array_equal(found.astype(np.float16), KEPT[selector.rows])
