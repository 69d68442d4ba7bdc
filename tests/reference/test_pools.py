"""Pools: both kinds, and hostile ones."""

import tarfile

import numpy as np
import pytest
from selector_tools.pools.opening import open_pool
from selector_tools.pools.webdataset import MAX_MEMBER_BYTES
from support.model import samples
from support.pools import arrays, png, shard, text, write_tar

from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.errors import SetupError

IMAGE = png(np.zeros((8, 8, 3), np.uint8))


def everything(place, size=4):
    return list(open_pool(str(place)).batches(size))


def test_shards_in_a_folder_are_read_in_batches(tmp_path):
    shard(tmp_path / "b.tar", 3, seed=1)
    shard(tmp_path / "a.tar", 3)
    (tmp_path / "notes.md").write_text("not a shard")
    first, second = everything(tmp_path)
    assert first.ids == ["a/0000", "a/0001", "a/0002", "b/0000"]
    assert (len(first), len(second)) == (4, 2)
    pixels, tokens = samples(3)
    assert first.images[2] == png(pixels[2])
    assert first.texts[1] == text(tokens[1]).encode()
    assert first.captions[1] == text(tokens[1])
    assert first.keys[0] == b"sa/0000" == string_key("a/0000")
    assert [batch.ids for batch in everything(tmp_path / "*.tar")] == [first.ids, second.ids]
    assert everything(tmp_path / "b.tar")[0].ids == ["b/0000", "b/0001", "b/0002"]


def test_keys_end_at_the_first_dot_and_other_files_are_passed_over(tmp_path):
    link = tarfile.TarInfo("x/2.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    members = [folder, ("x/1.json", b"{}"), ("x/1.txt", b"one"), ("x/1.JPG", IMAGE), ("x/._1.txt", b"junk"), link]
    [batch] = everything(write_tar(tmp_path / "s.tar", members))
    assert batch.ids == ["s/x/1"]
    assert batch.images == [IMAGE]


def test_names_in_a_tar_lead_nowhere(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    members = [("../../evil.png", IMAGE), ("../../evil.txt", b"x"), ("/abs.txt", b"y"), ("/abs.webp", IMAGE)]
    [batch] = everything(write_tar(inner / "s.tar", members))
    assert batch.ids == ["s/../../evil", "s//abs"]
    assert [file.name for file in tmp_path.rglob("*")] == ["inner", "s.tar"]


def lying(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", IMAGE), ("2.png", IMAGE), ("2.txt", b"x")], "is s/1; has no text"),
        ([("1.txt", b"x")], "is s/1; has no image"),
        ([("1.png", IMAGE), ("1.jpg", IMAGE), ("1.txt", b"x")], "is s/1; has a second image"),
        ([("1.png", IMAGE), ("1.txt", b"x"), ("1.txt", b"x")], "is s/1; has a second text"),
        (
            [("1.png", IMAGE), ("1.txt", b"x"), ("2.png", IMAGE), ("2.txt", b"y"), ("1.png", IMAGE), ("1.txt", b"x")],
            "is s/1; is there twice",
        ),
        ([("1.png", b"x" * (MAX_MEMBER_BYTES + 1)), ("1.txt", b"x")], "is s/1.png; has 16777217 bytes"),
        ([("1.txt", b"\xff"), ("1.png", IMAGE)], "must be UTF-8"),
        ([("k" * 260 + ".png", IMAGE), ("k" * 260 + ".txt", b"x")], "at most 240 bytes"),
        ([("1.json", b"{}")], "holds no pair"),
        ([], "holds no pair"),
    ],
)
def test_bad_members_are_named(tmp_path, members, message):
    with pytest.raises(SetupError, match=message):
        everything(write_tar(tmp_path / "s.tar", members))


def test_a_size_that_lies_is_not_believed(tmp_path):
    file = tmp_path / "s.tar"
    huge = write_tar(file, [lying("1.png", 0), ("1.txt", b"x")]).read_bytes()
    for size, message in ((1 << 40, "a file may have"), (1 << 20, "must be a tar file, uncompressed and whole")):
        header = lying("1.png", size).tobuf(tarfile.GNU_FORMAT)
        file.write_bytes(header + huge[512:])
        with pytest.raises(SetupError, match=message):
            everything(file)


@pytest.mark.parametrize("cut", [100, 600, 1024, 3000])
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path, cut):
    file = shard(tmp_path / "s.tar", 4)
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    with pytest.raises(SetupError, match="uncompressed and whole"):
        everything(file)
    file.write_bytes(whole[:1024] + b"\x01" * 512 + whole[1536:])
    with pytest.raises(SetupError, match="uncompressed and whole"):
        everything(file)


def test_shards_of_one_name_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "s.tar", 1)
    with pytest.raises(SetupError, match="must differ in its name"):
        everything(tmp_path / "*" / "s.tar")


@pytest.mark.parametrize("name", ["missing.tar", "missing.npz", "empty/", "*.nothing"])
def test_a_place_without_a_pool(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match="--pool"):
        everything(tmp_path / name)


def test_arrays_are_read_in_batches(tmp_path):
    pixels, tokens = samples(6)
    first, second = everything(arrays(tmp_path / "p.npz", 6, captions=np.array(list("abcdef"))))
    assert first.ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(second.images, pixels[4:])
    np.testing.assert_array_equal(second.texts, tokens[4:])
    assert second.captions == ["e", "f"]
    assert second.keys == [integer_key(4), integer_key(5)] == [b"i\x04" + bytes(7), b"i\x05" + bytes(7)]
    texts = np.array(["über", "a b"])
    [batch] = everything(arrays(tmp_path / "t.npz", 2, tokens=None, texts=texts, ids=np.array([-1, 2**62])))
    assert batch.texts == ["über".encode(), b"a b"]
    assert batch.captions == ["über", "a b"]
    assert batch.keys[0] == b"i" + b"\xff" * 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": None}, "images is missing"),
        ({"images": np.zeros((3, 8, 8, 3), np.float32)}, "images is float32"),
        ({"tokens": None}, "texts is missing"),
        ({"tokens": np.zeros((2, 4), np.int64)}, "tokens is int64"),
        ({"tokens": None, "texts": np.array([b"a", b"b", b"c"])}, "must be strings"),
        ({"captions": np.array(["a"])}, "captions is"),
        ({"ids": np.array([7, 8, 7])}, "ids is 7; is there twice"),
        ({"ids": np.array([1.0, 2.0, 3.0])}, "must be int64"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no pair"),
        ({"captions": np.array([{}, {}, {}], object)}, "without pickled objects"),
    ],
)
def test_bad_arrays_are_named(tmp_path, more, message):
    with pytest.raises(SetupError, match=message):
        everything(arrays(tmp_path / "p.npz", 3, **more))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"\x93NUMPY\x01\x00"])
def test_no_npz_at_all(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(SetupError, match=r"must be an \.npz file"):
        everything(tmp_path / "p.npz")
