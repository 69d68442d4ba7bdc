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


# WebDataset as its users have it, without a view and a take of one's own


@pytest.fixture
def captioned(tmp_path):
    """Two shards of pictures and captions. One of the pictures is cut off."""
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for index in range(30 * shard, 30 * shard + 30):
                sample = {"__key__": f"{index:04}", "png": png(PIXELS[index]), "txt": f"w{1 + index}"}
                if index == 7:
                    sample["png"] = sample["png"][:50]
                writer.write(sample)
    return str(tmp_path / "{0..1}.tar")


def rows_of(texts):
    return [int(text.removeprefix("w")) - 1 for text in texts]


DECODERS = {"raw": None, "pil": "pil", "rgb8": "rgb8", "torch": "torch", "torchrgb8": "torchrgb8"}


@pytest.mark.parametrize("layout", ["tuples", "tuples, uncollated", "mappings", "mappings, uncollated"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_webdatasets_forms(server, captioned, decoder, layout):
    """Raw files, PIL images, arrays and tensors, in batches of columns or of samples."""
    stream = wds.WebDataset(captioned, shardshuffle=False, handler=wds.ignore_and_continue)
    if DECODERS[decoder]:
        stream = stream.decode(DECODERS[decoder], handler=wds.ignore_and_continue)
    if layout.startswith("tuples"):
        stream = stream.to_tuple("png", "txt")
    stream = stream.batched(20, collation_fn=list) if "uncollated" in layout else stream.batched(20)
    with Selector(server.address, **SETTINGS) as selector:
        loader = SelectingLoader(stream, selector)
        batches = list(loader)
    assert len(batches) == 3
    seen = []
    for batch in batches:
        if "uncollated" in layout:
            texts = [sample["txt"] if isinstance(sample, dict) else sample[1] for sample in batch]
        else:
            texts = batch["txt"] if isinstance(batch, dict) else batch[1]
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        assert len(texts) == 4
        seen += rows_of(texts)
    assert len(set(seen)) == 12
    assert 7 not in seen
    assert loader.progress.excluded == ({"unreadable": 1} if decoder == "raw" else {})


def test_a_resampled_webdataset_has_its_repeats_left_out(server, captioned):
    """It ended with `ids has ... more than once`."""
    stream = (
        wds.WebDataset(captioned, resampled=True, shardshuffle=False)
        .to_tuple("__key__", "png", "txt")
        .batched(80, collation_fn=list)
        .with_epoch(3)
    )

    def view(batch):
        keys, files, texts = zip(*batch, strict=True)
        return {"images": list(files), "texts": list(texts), "ids": list(keys)}

    with Selector(server.address, max_excluded_share=0.9, **SETTINGS) as selector:
        loader = SelectingLoader(stream, selector, view=view)
        for batch in loader:
            keys = [key for key, _, _ in batch]
            assert len(set(keys)) == len(keys) == 16
    assert loader.progress.excluded["repeated"] >= 3 * 20


def test_pictures_and_captions_of_a_hugging_face_dataset(server):
    """PIL images and lists of captions, one of them missing, as its own batches have them."""
    table = {
        "image": [Image.fromarray(pixels) for pixels in PIXELS],
        "caption": [None if i == 3 else [f"w{1 + i}", f"w{1 + i} w1"] for i in range(60)],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))})
    stream = datasets.Dataset.from_dict(table, features=features).to_iterable_dataset().batch(20)
    with Selector(server.address, **SETTINGS) as selector:
        loader = SelectingLoader(stream, selector)
        for _ in range(2):
            batches = list(loader)
            assert [len(batch["caption"]) for batch in batches] == [4] * 3
            for batch in batches:
                for image, caption in zip(batch["image"], batch["caption"], strict=True):
                    row = rows_of([caption.split()[0]])[0]
                    assert row != 3
                    assert np.array_equal(np.asarray(image), PIXELS[row])
    assert loader.progress.excluded == {"missing": 2}
