"""Pools in Parquet and Arrow files: as img2dataset and Hugging Face's datasets write them, and hostile ones."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selector_tools.pools.captions import Captions
from selector_tools.pools.opening import open_pool
from support.model import samples
from support.pools import png, shard, text

from selector_server.errors import SetupError


def rows(count, seed=0):
    """Images and captions of `samples(count, seed)`."""
    pixels, tokens = samples(count, seed)
    return [png(each) for each in pixels], [text(each) for each in tokens]


def parquet(file, count=5, seed=0, **more):
    """As img2dataset writes it; None takes a column out."""
    images, captions = rows(count, seed)
    columns = {"caption": captions, "key": [f"{row:09}" for row in range(count)], "status": ["success"] * count}
    columns = columns | {"url": ["http://nowhere"] * count, "jpg": images} | more
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), file)
    return file


def structs(images, paths=None):
    """As Hugging Face's feature Image keeps them."""
    paths = paths or [None] * len(images)
    return pa.array([{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)])


def everything(place, size=100, **more):
    return list(open_pool(str(place), **more).batches(size))


def test_parquet_of_img2dataset_is_read(tmp_path):
    parquet(tmp_path / "00001.parquet", 3, 1)
    parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    first, second = everything(tmp_path, 6)
    assert first.ids == [*(f"00000/{row:09}" for row in range(5)), "00001/000000000"]
    images, captions = rows(5)
    assert first.images[:5] == images
    assert first.captions[:5] == captions
    assert first.other_ids[5] == "000000000"
    assert len(second) == 2
    [keyed] = everything(tmp_path / "00000.parquet", ids="key")
    assert keyed.ids == [f"{row:09}" for row in range(5)]


def test_tars_win_over_the_parquet_that_is_about_them(tmp_path):
    shard(tmp_path / "00000.tar", 3)
    parquet(tmp_path / "00000.parquet", jpg=None)
    assert everything(tmp_path)[0].ids == [f"00000/{row:04}" for row in range(3)]
    with pytest.raises(SetupError, match=r"00000.parquet; has no column of images.*\.tar beside it"):
        everything(tmp_path / "00000.parquet")


def test_rows_without_keys_are_numbered(tmp_path):
    images, captions = rows(70)
    pq.write_table(pa.table({"image": structs(images), "text": captions}), tmp_path / "s.parquet", row_group_size=7)
    batches = everything(tmp_path / "s.parquet", 32)
    assert [name for batch in batches for name in batch.ids] == [f"s/{row}" for row in range(70)]
    assert [image for batch in batches for image in batch.images] == images
    with pytest.raises(SetupError, match=r"has no column of keys .* which --ids key needs"):
        everything(tmp_path / "s.parquet", ids="key")


@pytest.mark.parametrize("remote", [False, True])
def test_a_data_set_that_datasets_saved_is_read(tmp_path, remote):
    import datasets

    images, captions = rows(20)
    files = [{"bytes": each, "path": None} for each in images]
    data = datasets.Dataset.from_dict({"image": files, "caption": captions})
    data = data.cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(str(tmp_path / "splits"))
    place = "file://" + str(tmp_path) if remote else str(tmp_path)
    [batch] = everything(f"{place}/one")
    assert batch.ids[:2] == ["data-00000-of-00003/0", "data-00000-of-00003/1"]
    assert batch.images == images
    assert batch.captions == captions
    with pytest.raises(SetupError, match=r"splits; is a data set of several splits"):
        everything(f"{place}/splits")
    [batch] = everything(f"{place}/splits/train::{place}/splits/test")
    assert batch.ids[19:21] == ["train/data-00000-of-00001/19", "test/data-00000-of-00001/0"]
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(SetupError, match=r"data-00001-of-00003\.arrow; is not there"):
        everything(f"{place}/one")


def arrow(file, table, kind=pa.ipc.new_stream):
    with file.open("wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return file


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_kinds_of_arrow_files_and_cut_ones(tmp_path, kind):
    images, captions = rows(10)
    file = arrow(tmp_path / "d.arrow", pa.table({"image": images, "text": captions}), kind)
    assert everything(file)[0].images == images
    whole = file.read_bytes()
    for cut in (len(whole) - 8, len(whole) - 1000, 500, 3):
        file.write_bytes(whole[:cut])
        with pytest.raises(SetupError, match="must be an Arrow file, and whole"):
            everything(file)


def test_a_stream_cut_between_two_batches_is_not_taken_for_a_short_one(tmp_path):
    images, captions = rows(9)
    table = pa.table({"image": images, "text": captions})
    short, whole = (arrow(tmp_path / f"{n}.arrow", table[:n]).read_bytes() for n in (3, 9))
    (tmp_path / "9.arrow").write_bytes(whole[: len(short) - 8])
    with pytest.raises(SetupError, match="the end of the stream is missing"):
        everything(tmp_path / "9.arrow")


@pytest.mark.parametrize("cut", [0, 3, 100, 2000])
def test_a_cut_parquet_file_is_named(tmp_path, cut):
    file = parquet(tmp_path / "s.parquet")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(SetupError, match=rf"--pool is {file}; must be a Parquet file, and whole") as caught:
        everything(file)
    assert "\n" not in str(caught.value)


def test_a_spoilt_page_is_named(tmp_path):
    file = parquet(tmp_path / "s.parquet", 50)
    content = bytearray(file.read_bytes())
    content[100:4000] = bytes(3900)
    file.write_bytes(content)
    with pytest.raises(SetupError, match="must be a Parquet file, and whole"):
        everything(file)


def test_nulls_and_doubles_are_left_out_and_said_why(tmp_path):
    images, captions = rows(8)
    images[1] = None
    captions[2] = None
    keys = ["a", "b", "c", "a", None, "e", "f", "g"]
    images[5] = b"x" * ((16 << 20) + 1)
    captions[6] = "  "
    [batch] = everything(parquet(tmp_path / "s.parquet", 8, caption=captions, jpg=images, key=keys))
    assert batch.ids == ["s/a", "s/f", "s/g"]
    told = {name: f"{error.exclusion.value}: {error.value}; {error.limit}" for name, error in batch.bad}
    assert told["s/b"] == "missing: without image; a pair needs one"
    assert told["s/c"].startswith("missing: no caption in its column caption")
    assert told["s/a"].startswith("repeated: there twice")
    assert told["s/4"].startswith("missing: none; a pair needs a key")
    assert told["s/e"].startswith("too_large: an image of 16777217 bytes")


def test_images_outside_are_not_looked_for(tmp_path):
    images, captions = rows(2)
    secret = tmp_path / "secret"
    secret.write_bytes(images[0])
    table = pa.table({"image": structs([None, images[1]], [str(secret), None]), "text": captions})
    pq.write_table(table, tmp_path / "s.parquet")
    [batch] = everything(tmp_path / "s.parquet")
    assert batch.ids == ["s/1"]
    assert f"it is outside, at {secret}" in batch.bad[0][1].limit


def test_lists_of_captions_are_numbered_as_in_shards(tmp_path):
    images, _ = rows(3)
    lists = [["w1", None, "w2"], [], ["w3"]]
    file = parquet(tmp_path / "s.parquet", 3, caption=["x"] * 3, jpg=images, captions=lists, key=None)
    [batch] = everything(file, captions=Captions.at("json:captions"))
    assert batch.ids == ["s/0#0", "s/0#2", "s/2#0"]
    assert batch.texts == [b"w1", b"w2", b"w3"]
    assert batch.images[0] == batch.images[1] == images[0]
    [lines] = everything(parquet(tmp_path / "t.parquet", 1, caption=["w1\n\nw2"]), captions=Captions.at("txt-lines"))
    assert lines.ids == ["t/000000000#0", "t/000000000#2"]


def test_tags_are_integers_that_all_pairs_have(tmp_path):
    file = parquet(tmp_path / "s.parquet", 3, tags=pa.array([7, None, 9], pa.int32()))
    [batch] = everything(file)
    assert batch.tags.tolist() == [7, 9]
    assert [error.exclusion.value for _, error in batch.bad] == ["value"]
    [batch] = everything(parquet(tmp_path / "t.parquet", 2, tags=[["cat"], ["dog"]]))
    assert batch.tags is None


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"jpg": None}, "has no column of images"),
        ({"jpg": ["text"] * 5}, r"has no column of images .*jpg \(string\)"),
        ({"caption": None}, "has no column of texts .*--captions json:COLUMN names one"),
        ({"caption": [1] * 5}, r"has no column of texts .*caption \(int64\)"),
    ],
)
def test_other_schemas_are_named_with_their_columns(tmp_path, more, why):
    parquet(tmp_path / "a.parquet")
    bad = parquet(tmp_path / "b.parquet", **more)
    with pytest.raises(SetupError, match=why) as caught:
        everything(tmp_path)
    assert str(caught.value).startswith(f"--pool is {bad}; ")


def test_shards_may_differ_in_what_nobody_asks_for(tmp_path):
    parquet(tmp_path / "a.parquet")
    images, captions = rows(2)
    other = pa.table({"x": [1, 2], "text": pa.array(captions).dictionary_encode(), "img": images})
    pq.write_table(other, tmp_path / "b.parquet")
    assert everything(tmp_path)[0].ids[4:] == ["a/000000004", "b/0", "b/1"]


def test_a_huge_row_group_is_not_held_in_memory(tmp_path):
    content = np.random.default_rng(0).bytes(256 << 10)
    images = pa.array([content] * 400)  # 100 MiB
    table = pa.table({"image": images, "text": pa.array(["w1"] * 400)})
    pq.write_table(table, tmp_path / "s.parquet", use_dictionary=False, compression="none", write_batch_size=16)
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 1
    del table, images
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in open_pool(str(tmp_path / "s.parquet")).batches(16):
        most, count = max(most, pa.total_allocated_bytes() - before), count + len(batch)
    assert count == 400
    assert most < 60 << 20


def test_a_state_that_names_other_files_is_refused(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    for state in ({"_data_files": [{"filename": "../x.arrow"}]}, {}, []):
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(SetupError, match=r"state\.json; is no state of a data set"):
            everything(tmp_path)
    shutil.rmtree(tmp_path)
