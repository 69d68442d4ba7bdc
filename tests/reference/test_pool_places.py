"""Pools in stores: read by ranges, tried again where that helps, and named in one line where it does not."""

import gzip
import pickle

import fsspec
import numpy as np
import pytest
from selector_tools.pools import storage
from selector_tools.pools.opening import open_pool
from selector_tools.pools.places import names
from support.pools import arrays, shard
from support.range_server import RangeServer

from selector_server.errors import SetupError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Tries again at once."""
    monkeypatch.setattr(storage, "RETRY_SECONDS", (0.01, 0.01))


@pytest.fixture
def web(tmp_path):
    shard(tmp_path / "a.tar", 5)
    shard(tmp_path / "b.tar", 3, seed=1)
    with RangeServer(tmp_path) as server:
        yield server


@pytest.fixture
def memory():
    """fsspec's store in this process's memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def ids(place, size=100):
    return [name for batch in open_pool(place).batches(size) for name in batch.ids]


LOCAL = [f"a/000{row}" for row in range(5)] + [f"b/000{row}" for row in range(3)]


def test_a_remote_pool_is_the_local_one(web, tmp_path):
    [here], [there] = (list(open_pool(f"{place}/{{a,b}}.tar").batches(100)) for place in (tmp_path, web.url))
    assert there.ids == here.ids == LOCAL
    assert there.images == here.images
    assert there.keys == here.keys


def test_a_packed_shard_and_an_npz_come_through_a_store_too(web, tmp_path):
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    arrays(tmp_path / "p.npz", 4)
    assert ids(f"{web.url}/c.tar.gz") == [name.replace("a/", "c/") for name in LOCAL[:5]]
    assert ids(f"{web.url}/p.npz") == [0, 1, 2, 3]


def test_folders_patterns_and_lists_of_a_store(memory, tmp_path):
    for name, place in (("x/a", "a"), ("x/b", "b"), ("y/a", "a")):
        memory.pipe(f"/{name}.tar", shard(tmp_path / f"{place}.tar", 1).read_bytes())
    memory.pipe("/x/notes.md", b"no shard")
    assert ids("memory://x") == ["a/0000", "b/0000"]
    assert ids("memory://x/*.tar") == ["a/0000", "b/0000"]
    assert ids("memory://x/a.tar::memory://y/a.tar") == ["x/a/0000", "y/a/0000"]
    assert ids(f"memory://x/a.tar::{tmp_path}/b.tar") == ["a/0000", "b/0000"]


def test_names_of_urls():
    assert names(["s3://b/x/00.tar", "s3://b/y/00.tar", "https://h/z/1.tar?sig=a/b"]) == ["x/00", "y/00", "1"]


def test_a_large_file_is_read_by_ranges_and_what_is_skipped_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BLOCK", 1000)
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "f").write_bytes(content)
    with RangeServer(tmp_path) as server, storage.opened(f"{server.url}/f", block=1000) as file:
        assert file.read(10) == content[:10]
        file.seek(-500, 2)
        assert file.read() == content[-500:]
        assert file.tell() == 10_000
        assert server.asked == [("/f", "bytes=0-999"), ("/f", "bytes=9500-9999")]


@pytest.mark.parametrize("fault", [500, 503, 429, "break", 1.0])
def test_what_passes_is_tried_again(web, monkeypatch, fault):
    monkeypatch.setattr(storage, "SILENT_SECONDS", 0.3)
    web.faults = [fault, fault]
    assert ids(f"{web.url}/a.tar::{web.url}/b.tar") == LOCAL
    assert len(web.asked) == 4


def test_what_does_not_pass_is_told_with_the_number_of_tries(web):
    web.faults = [503] * 9
    with pytest.raises(SetupError, match=r"/a\.tar; .*503.*\(tried 3 times\)"):
        ids(f"{web.url}/a.tar")


@pytest.mark.parametrize(("status", "why"), [(403, "403"), (401, "401"), (404, "is not there")])
def test_a_refusal_is_told_at_once(web, status, why):
    web.faults, web.spoils = [status] * 9, lambda path: "b.tar" in path
    pool = open_pool(f"{web.url}/{{a,b}}.tar")
    with pytest.raises(SetupError, match=rf"--pool is {web.url}/b\.tar; .*{why}") as caught:
        list(pool.batches(2))
    assert "\n" not in str(caught.value)
    assert len(web.asked) == 2, "b.tar is asked for once"


def test_a_server_without_ranges_is_told(tmp_path):
    shard(tmp_path / "a.tar", 5)
    with RangeServer(tmp_path, ranges=False) as server:
        with storage.opened(f"{server.url}/a.tar", block=100) as file, pytest.raises(SetupError, match="no ranges"):
            file.read(10)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nosuch://b/a.tar", "cannot be reached: Protocol not known: nosuch"),
        ("dvc://b/a.tar", "its driver is not installed"),
        ("memory://nothing/a.tar", "must be an .npz"),
        ("memory://nothing/a.npz", "is not there"),
    ],
)
def test_places_that_cannot_be_reached(place, why):
    with pytest.raises(SetupError, match=why) as caught:
        list(open_pool(place).batches(4))
    assert str(caught.value).startswith(f"--pool is {place}")


def test_a_shard_that_is_cut_in_a_store_is_not_taken_for_a_short_one(web, tmp_path):
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3000])
    with pytest.raises(SetupError, match="must be a tar file, and whole"):
        ids(f"{web.url}/a.tar")


def test_a_shard_is_read_apart(tmp_path):
    shard(tmp_path / "a.tar", 5)
    shard(tmp_path / "b.tar", 3, seed=1)
    arrays(tmp_path / "p.npz", 4)
    pool = open_pool(str(tmp_path))
    shards = pickle.loads(pickle.dumps(pool.shards()))
    assert [(one.name, one.place, one.size) for one in shards] == [
        ("a", f"{tmp_path}/a.tar", None),
        ("b", f"{tmp_path}/b.tar", None),
    ]
    assert [batch.ids for batch in shards[1].batches(2)] == [LOCAL[5:7], LOCAL[7:]]
    [whole] = pool.batches(100)
    apart = [batch for one in shards for batch in one.batches(100)]
    assert [name for batch in apart for name in batch.ids] == whole.ids
    assert [image for batch in apart for image in batch.images] == whole.images
    [alone] = open_pool(f"{tmp_path}/p.npz").shards()
    assert (alone.name, alone.size, [len(batch) for batch in alone.batches(3)]) == ("p", 4, [3, 1])


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_written_is_whole_or_not_there(tmp_path, memory, remote):
    place = "memory://out/f" if remote else str(tmp_path / "out" / "f")
    with pytest.raises(ZeroDivisionError), storage.written(place) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert storage.kind(place) is None
    for content in (b"first", b"second"):
        with storage.written(place) as file:
            file.write(content)
        with storage.opened(place) as found:
            assert found.read() == content
    assert storage.files_in("memory://out" if remote else str(tmp_path / "out")) == [
        "memory:///out/f" if remote else place
    ]


def test_a_stamp_tells_files_apart(tmp_path, memory):
    file = tmp_path / "f"
    file.write_bytes(b"one")
    first = storage.stamp(str(file))
    file.write_bytes(b"two!")
    assert storage.stamp(str(file)) != first == first.replace("4 ", "3 ", 1)
    memory.pipe("/f", b"one")
    before = storage.stamp("memory://f")
    memory.pipe("/f", b"four")
    assert storage.stamp("memory://f") != before
