"""Pools: both kinds, and hostile ones."""

import bz2
import gzip
import lzma
import tarfile

import numpy as np
import pytest
from selector_tools.pools.exclusions import Exclusions
from selector_tools.pools.opening import open_pool
from selector_tools.pools.places import _expanded, names
from selector_tools.pools.sharded import DigestsOfNames
from selector_tools.pools.webdataset import MAX_MEMBER_BYTES, _samples
from support.model import samples
from support.pools import arrays, png, shard, text, write_tar
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_iterator

from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.errors import Exclusion, SetupError

IMAGE = png(np.zeros((8, 8, 3), np.uint8))


PAIR, OTHER = [("1.png", IMAGE), ("1.txt", b"x")], [("2.png", IMAGE), ("2.txt", b"y")]


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
    assert [name for name, _ in batch.bad] == ["s/x/"]  # to the library, x/._1.txt is a file of this key


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
    ("members", "reason", "message"),
    [
        ([("1.png", IMAGE)], "missing", "s/1: without text; has only .png"),
        ([("1.txt", b"x")], "missing", "s/1: without image; has only .txt"),
        ([("1.txt", b"x"), ("1.jp2", b"y")], "missing", "s/1: without image; has only .txt, .jp2"),
        ([("1.png", IMAGE), ("1.txt", b"x"), ("1.txt", b"x")], "missing", "s/1: without image"),
        ([*PAIR, *OTHER, *PAIR], "repeated", "s/1: there twice"),
        ([("1.png", b"x" * (MAX_MEMBER_BYTES + 1)), ("1.txt", b"x")], "too_large", "s/1: a .png of 16777217 bytes"),
        ([("1.png", IMAGE), ("1.txt", b"x" * (MAX_MEMBER_BYTES + 1))], "too_large", "s/1: a .txt of 16777217 bytes"),
        ([("k" * 260 + ".png", IMAGE), ("k" * 260 + ".txt", b"x")], "too_large", "an id of 262 bytes; at most 240"),
        ([("1\udcff.png", IMAGE), ("1\udcff.txt", b"x")], "text", "must be UTF-8"),
        ([("a 2.0.jpg", IMAGE), ("a 2.0.txt", b"x")], "format", "the first dot: of a 2.0.jpg the extension is 0.jpg"),
        ([("1.txt", b"x"), ("1.seg.png", IMAGE)], "format", "s/1: without image"),
    ],
)
def test_what_is_no_pair_is_left_out_and_said_why(tmp_path, members, reason, message):
    batches = everything(write_tar(tmp_path / "s.tar", [("0.png", IMAGE), ("0.txt", b"x"), *members]))
    exclusions = Exclusions()
    for batch in batches:
        exclusions.begin(batch)
    assert exclusions.as_json()["reasons"].keys() == {reason}
    assert message in exclusions.lines()[2]
    good = [called for batch in batches for called in batch.ids]
    assert good[0] == "s/0"
    assert len(good) + 1 == exclusions.seen


@pytest.mark.parametrize("members", [[("1.json", b"{}"), ("README.md", b"")], []])
def test_a_shard_without_pairs_is_a_mistake(tmp_path, members):
    with pytest.raises(SetupError, match="holds no pair"):
        everything(write_tar(tmp_path / "s.tar", members))


def test_of_several_images_of_a_sample_open_clips_first_counts(tmp_path):
    others = [("1.webp", b"w"), ("1.jpeg", b"j"), ("1.png", b"p"), ("1.gif", b"g"), ("1.txt", b"x")]
    [batch] = everything(write_tar(tmp_path / "s.tar", others))
    assert batch.images == [b"p"]
    [batch] = everything(write_tar(tmp_path / "t.tar", [("1.gif", b"g"), ("1.tiff", b"t"), ("1.txt", b"x")]))
    assert batch.images == [b"g"]


NAMES = [
    "235342 Track 2.0.jpg",
    "235342 Track 2.0.txt",
    "a/b.c/d.jpg",
    "a/b.c/d.txt",
    "._1.jpg",
    "x/._1.txt",
    "./e.jpg",
]
NAMES += ["./e.TXT", "no-dot", "a.b/no-dot", "__meta__", "__meta__/f.jpg", "g.seg.png", "g.png", "g.txt", "h.", "..jpg"]


def test_keys_and_extensions_are_those_of_the_webdataset_library(tmp_path):
    members = [(name, b"x") for name in NAMES]
    shard = write_tar(tmp_path / "s.tar", members)
    with shard.open("rb") as stream:
        seen = list(group_by_keys({"__url__": "", **file} for file in tar_file_iterator(stream)))
    theirs = [(one["__key__"], {name for name in one if not name.startswith("__")}) for one in seen]
    assert [(key, set(files)) for key, files in _samples(str(shard), "txt")] == theirs
    assert ("235342 Track 2", {"0.jpg", "0.txt"}) in theirs


def test_a_size_that_lies_is_not_believed(tmp_path):
    file = tmp_path / "s.tar"
    huge = write_tar(file, [lying("1.png", 0), ("1.txt", b"x")]).read_bytes()
    for size in (1 << 40, 1 << 20):
        header = lying("1.png", size).tobuf(tarfile.GNU_FORMAT)
        file.write_bytes(header + huge[512:])
        with pytest.raises(SetupError, match="must be a tar file, and whole"):
            everything(file)


@pytest.mark.parametrize("cut", [100, 600, 1024, 3000])
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path, cut):
    file = shard(tmp_path / "s.tar", 4)
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    with pytest.raises(SetupError, match="a tar file, and whole"):
        everything(file)
    file.write_bytes(whole[:1024] + b"\x01" * 512 + whole[1536:])
    with pytest.raises(SetupError, match="a tar file, and whole"):
        everything(file)


def test_a_damaged_compressed_shard_is_not_taken_for_a_short_one(tmp_path):
    content = gzip.compress(shard(tmp_path / "s.tar", 4).read_bytes())
    (tmp_path / "s.tar").unlink()
    file = tmp_path / "s.tar.gz"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SetupError, match="a tar file, and whole"):
        everything(file)


def test_shards_of_one_name_in_two_folders_keep_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "s.tar", 1)
    shard(tmp_path / "one" / "t.tar", 1)
    [batch] = everything(tmp_path / "*" / "?.tar")
    assert batch.ids == ["one/s/0000", "t/0000", "two/s/0000"]
    [batch] = everything(f"{tmp_path}/one/s.tar::{tmp_path}/one/s.tar")
    assert batch.ids == ["s/0000"]


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        (["a/s.tar", "b/s.tar", "a/t.tar"], ["a/s", "b/s", "t"]),
        (["x/a/s.tar", "y/a/s.tar", "b/s.tgz"], ["x/a/s", "y/a/s", "b/s"]),
        (["s.x.tar", "s.tar.gz", "s.y.tgz", "odd"], ["s.x", "s", "s.y", "odd"]),
        (["/d/s.tar", "/d/s.tar.gz"], ["/d/s.tar", "/d/s.tar.gz"]),
    ],
)
def test_names_of_shards(shards, expected):
    assert names(shards) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{00000..00002}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("{9..11}.tar", ["9.tar", "10.tar", "11.tar"]),
        ("{2..0}.tar", ["2.tar", "1.tar", "0.tar"]),
        ("{a,b{1..2}}/{x,y}.tar", ["a/x.tar", "a/y.tar", "b1/x.tar", "b1/y.tar", "b2/x.tar", "b2/y.tar"]),
        ("{1..2}.tar::c.tar", ["1.tar", "2.tar", "c.tar"]),
    ],
)
def test_braces_are_expanded_as_webdataset_does(tmp_path, monkeypatch, pattern, expected):
    monkeypatch.chdir(tmp_path)
    assert sorted(_expanded(pattern)) == sorted(expected) == sorted(expand_urls(pattern))


def test_brace_patterns_open_shards_and_name_what_is_not_there(tmp_path):
    for number in range(3):
        shard(tmp_path / f"0000{number}.tar", 1, number)
    [batch] = everything(f"{tmp_path}/{{00000..00002}}.tar")
    assert batch.ids == ["00000/0000", "00001/0000", "00002/0000"]
    assert [batch.ids for batch in everything(f"{tmp_path}/{{00000,00002}}*")] == [["00000/0000", "00002/0000"]]
    with pytest.raises(SetupError, match=r"00003\.tar; .*\(2 shards are not there\)"):
        everything(f"{tmp_path}/{{00000..00004}}.tar")
    with pytest.raises(SetupError, match="more than 1048576 shards"):
        everything(f"{tmp_path}/{{0..99999999}}.tar")


@pytest.mark.parametrize(
    ("suffix", "packed"), [(".tar.gz", gzip), (".tgz", gzip), (".tar.bz2", bz2), (".tar.xz", lzma), (".tar", gzip)]
)
def test_compressed_shards(tmp_path, suffix, packed):
    plain = shard(tmp_path / "plain", 3)
    content = plain.read_bytes()
    plain.unlink()
    (tmp_path / f"s{suffix}").write_bytes(packed.compress(content))
    [batch] = everything(tmp_path)
    assert batch.ids == ["s/0000", "s/0001", "s/0002"]
    assert batch.images[1] == png(samples(3)[0][1])


def test_ids_are_the_trainers_keys_where_that_is_asked_for(tmp_path):
    shard(tmp_path / "a.tar", 2)
    shard(tmp_path / "b.tar", 3)
    [batch] = open_pool(str(tmp_path), "key").batches(9)
    assert batch.ids == ["0000", "0001", "0002"]
    assert batch.other_ids == ["a/0000", "a/0001", "b/0002"]
    assert [(name, error.exclusion) for name, error in batch.bad] == [
        ("0000", Exclusion.REPEATED),
        ("0001", Exclusion.REPEATED),
    ]
    [batch] = everything(tmp_path, 9)
    assert batch.other_ids == ["0000", "0001", "0000", "0001", "0002"]


def test_names_are_known_again_however_many_there_are(monkeypatch):
    monkeypatch.setattr(DigestsOfNames, "_MOST", 7)
    known = DigestsOfNames()
    assert all(known.add(str(number)) for number in range(200))
    assert not any(known.add(str(number)) for number in range(200))
    assert known.add("200")


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
        ({"ids": np.array([1.0, 2.0, 3.0])}, "must be int64"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no pair"),
        ({"captions": np.array([{}, {}, {}], object)}, "without pickled objects"),
    ],
)
def test_bad_arrays_are_named(tmp_path, more, message):
    with pytest.raises(SetupError, match=message):
        everything(arrays(tmp_path / "p.npz", 3, **more))


def test_rows_of_an_array_that_are_no_pairs_are_left_out(tmp_path):
    texts = np.array(["a", "b", "c", "bad \udcff", "e"])
    pool = arrays(tmp_path / "p.npz", 5, tokens=None, texts=texts, ids=np.array([7, 8, 7, 9, 10]))
    first, second = everything(pool)
    assert [*first.ids, *second.ids] == [7, 8, 10]
    assert [*first.texts, *second.texts] == [b"a", b"b", b"e"]
    np.testing.assert_array_equal(np.concatenate([first.images, second.images]), samples(5)[0][[0, 1, 4]])
    assert [(name, error.exclusion) for name, error in first.bad] == [(7, Exclusion.REPEATED), (9, Exclusion.TEXT)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"\x93NUMPY\x01\x00"])
def test_no_npz_at_all(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(SetupError, match=r"must be an \.npz file"):
        everything(tmp_path / "p.npz")
