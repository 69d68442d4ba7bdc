"""The loader over WebDataset shards and Hugging Face datasets, real ones."""

import io
import json

import datasets
import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from selector_client import SelectingLoader, Selector
from support.model import samples

PIXELS, TOKENS = samples(60, 4)
SETTINGS = {"filter_ratio": 0.8, "seed": 2, "timeout": 30.0, "on_error": "raise"}


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two tar files of pictures and token ids."""
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"pairs-{shard}.tar")) as writer:
            for index in range(30 * shard, 30 * shard + 30):
                tokens = json.dumps(TOKENS[index].tolist()).encode()
                writer.write({"__key__": f"{index:04}", "png": png(PIXELS[index]), "json": tokens})
    return str(tmp_path / "pairs-{0..1}.tar")


def test_webdataset(server, shards):
    """Pictures travel as files; only the picks are decoded by the trainer."""
    stream = (
        wds.WebDataset(shards, shardshuffle=False).to_tuple("__key__", "png", "json").batched(20, collation_fn=list)
    )

    def view(super_batch):
        keys, files, texts = zip(*super_batch, strict=True)
        tokens = np.array([json.loads(text) for text in texts])
        return {"images": list(files), "texts": tokens, "ids": list(keys)}

    def take(super_batch, indices):
        picked = [super_batch[index] for index in indices]
        return [int(key) for key, _, _ in picked], np.stack([Image.open(io.BytesIO(file)) for _, file, _ in picked])

    with Selector(server.address, **SETTINGS) as selector:
        batches = list(SelectingLoader(stream, selector, view=view, take=take))
    assert len(batches) == 3
    for rows, pictures in batches:
        assert len(set(rows)) == 4
        assert np.array_equal(pictures, PIXELS[rows])


def test_hugging_face_datasets(server):
    table = {"pixels": list(PIXELS), "tokens": list(TOKENS), "row": list(range(60))}
    dataset = datasets.Dataset.from_dict(table).with_format("numpy")

    def view(indices):
        rows = dataset[indices.tolist()]
        return {"images": rows["pixels"].astype(np.uint8), "texts": rows["tokens"]}

    with Selector(server.address, **SETTINGS) as selector:
        loader = SelectingLoader.over(dataset, selector, super_batch_size=20, view=view, seed=1)
        batches = list(loader)
        state = loader.state_dict()
        assert [len(batch["row"]) for batch in batches] == [4] * 3
        assert np.array_equal(np.asarray(batches[0]["pixels"]), PIXELS[np.asarray(batches[0]["row"])])
        loader.load_state_dict(state)
        assert len(list(loader)) == 3
    rows = np.concatenate([np.asarray(batch["row"]) for batch in batches])
    assert len(set(rows.tolist())) == 12
