"""The reference cache: what it gives back, and what it survives."""

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import threading
import zlib

import lmdb
import numpy as np
import pytest
import torch
from support.processes import spawn

from selector_server.encoding.image_files import DECODER
from selector_server.encoding.reference_cache import PENDING_WRITES, ReferenceCache, stat
from selector_server.errors import SetupError
from selector_server.sampling import Embedded

WIDTH, FINGERPRINT, OTHER = 8, "ab" * 32, "cd" * 32
MIB = 1 << 20


@pytest.fixture
def opened():
    """Opens caches that end with the test; `problems` of each are in a list."""
    stores = []

    def start(folder, fingerprint=FINGERPRINT, width=WIDTH, max_bytes=16 * MIB):
        problems = []
        stores.append(ReferenceCache(folder, "tiny", fingerprint, width, max_bytes, problems.append))
        return stores[-1], problems

    yield start
    for store in stores:
        store.close()


def keys(count, first=0):
    return [b"i" + int(n).to_bytes(8, "little") for n in range(first, first + count)]


def vectors(count, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((count, width)).astype(np.float16) for _ in range(2))


def test_what_was_put_is_found_and_nothing_else(tmp_path, opened):
    store, problems = opened(tmp_path / "cache")
    image, text = vectors(5)
    assert store.put(keys(5), image, text)
    found = store.find([*keys(2, 3), b"sunknown", *keys(3), *keys(1, 99)])
    assert found.known.tolist() == [True, True, False, True, True, True, False]
    assert np.array_equal(found.image, image[[3, 4, 0, 1, 2]])
    assert np.array_equal(found.text, text[[3, 4, 0, 1, 2]])
    assert not problems


def test_how_many_it_holds_and_one_of_them(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    assert store.held(10) == (0, "")
    store.put(keys(5), *vectors(5))
    assert store.held(10) == (5, "0")
    assert store.held(2) == (2, "0")
    store.close()
    assert store.held(10) == (0, "")
    other, _ = opened(tmp_path / "cache", OTHER)
    other.put([b"s00007/000000001"], *vectors(1))
    assert other.held(10) == (1, "00007/000000001")


def test_samples_of_all_references_are_counted_and_nothing_else(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    assert store.usage()[0] == 0
    store.put(keys(5), *vectors(5))
    assert store.usage()[0] == 5
    store.close()
    other, _ = opened(tmp_path / "cache", OTHER)
    other.put(keys(2), *vectors(2))
    assert other.usage()[0] == 7


def test_another_reference_never_hits(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    store.put(keys(3), *vectors(3))
    store.close()
    other, _ = opened(tmp_path / "cache", OTHER)
    assert not other.find(keys(3)).known.any()
    other.put(keys(2), *vectors(2, seed=1))
    other.close()
    held = {r.fingerprint: r.entries for r in stat(tmp_path / "cache").references}
    assert held == {FINGERPRINT: 3, OTHER: 2}


@pytest.fixture
def old(tmp_path):
    """A cache as version 0.1.0 left it, with entries of five ids."""
    image, text = vectors(5)
    rows = np.concatenate([image, text], axis=1)
    prefix = bytes.fromhex(FINGERPRINT)[:16]
    (tmp_path / "cache").mkdir()
    with lmdb.open(str(tmp_path / "cache"), map_size=16 * MIB) as store, store.begin(write=True) as transaction:
        header = {"name": "tiny", "fingerprint": FINGERPRINT, "width": WIDTH}
        transaction.put(b"h" + prefix, json.dumps(header).encode())
        for key, row in zip(keys(5), rows, strict=True):
            value = row.tobytes()
            transaction.put(b"r" + prefix + key, struct.pack("<I", zlib.crc32(value)) + value)
    return image, text


def test_entries_of_another_decoder_are_not_met(tmp_path, opened, old):
    store, problems = opened(tmp_path / "cache")
    assert not store.find(keys(5)).known.any()
    store.put(keys(5), *vectors(5, seed=1))
    assert np.array_equal(store.find(keys(5)).image, vectors(5, seed=1)[0])
    store.close()
    held = {r.decoder: (r.fingerprint, r.entries) for r in stat(tmp_path / "cache").references}
    assert held == {1: (FINGERPRINT, 5), DECODER: (FINGERPRINT, 5)}
    assert not problems


@pytest.mark.parametrize("wait", [True, False])
def test_entries_of_files_that_were_decoded_alike_are_taken_over(tmp_path, opened, old, wait):
    store, _ = opened(tmp_path / "cache")
    asked = []
    ids = [*keys(1, 99), *keys(5)]
    found = store.find(ids, lambda index: asked.append(index) or index % 2 == 1, wait=wait)
    assert asked == [1, 2, 3, 4, 5], "only of what is there"
    assert found.known.tolist() == [False, True, False, True, False, True]
    assert np.array_equal(found.image, old[0][[0, 2, 4]])
    assert np.array_equal(found.text, old[1][[0, 2, 4]])
    store.close()
    again, _ = opened(tmp_path / "cache")
    assert again.find(ids).known.tolist() == found.known.tolist(), "they are known now without their files"
    assert np.array_equal(again.find(ids).image, found.image)


def test_entries_outlive_the_process_and_writing_soon_ends_before_closing(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    for first in (0, 4):
        store.put_soon(keys(4, first), *vectors(4))
    store.close()
    again, _ = opened(tmp_path / "cache")
    assert again.find(keys(8)).known.all()


def test_a_full_cache_says_so_once_and_goes_on_answering(tmp_path, opened):
    store, problems = opened(tmp_path / "cache", width=1024, max_bytes=MIB)
    taken = [store.put(keys(50, first), *vectors(50, width=1024)) for first in range(0, 1000, 50)]
    assert taken[0] is True
    assert taken[-1] is False
    assert problems == ["full"]
    assert store.find(keys(50)).known.all()
    assert not store.find(keys(50, 950)).known.any()
    store.close()
    assert 0 < stat(tmp_path / "cache").used_bytes <= MIB


def test_a_changed_entry_counts_as_unknown(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    store.put(keys(3), *vectors(3))
    store.close()
    with lmdb.open(str(tmp_path / "cache"), map_size=16 * MIB) as raw, raw.begin(write=True) as transaction:
        records = [(key, bytes(value)) for key, value in transaction.cursor() if key.startswith(b"r")]
        transaction.put(records[0][0], records[0][1][:-1] + bytes([records[0][1][-1] ^ 1]))
        transaction.put(records[1][0], b"short")
    again, problems = opened(tmp_path / "cache")
    assert again.find(keys(3)).known.tolist() == [False, False, True]
    assert problems == ["corrupt", "corrupt"]
    again.put(keys(2), *vectors(2))
    assert again.find(keys(3)).known.all()


@pytest.mark.parametrize("how", ["garbage", "truncated"])
def test_a_corrupt_file_is_moved_aside_and_a_new_one_begun(tmp_path, opened, how):
    store, _ = opened(tmp_path / "cache")
    store.put(keys(200), *vectors(200))
    store.close()
    file = tmp_path / "cache" / "data.mdb"
    if how == "garbage":
        file.write_bytes(b"\xff" * file.stat().st_size)
    else:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2 // 4096 * 4096)
    again, problems = opened(tmp_path / "cache")
    assert problems == ["corrupt"]
    assert not again.find(keys(200)).known.any()
    assert again.put(keys(2), *vectors(2))
    assert len(list((tmp_path / "cache").glob("data.mdb.corrupt-*"))) == 1, "nothing was deleted"


def test_a_truncated_store_is_not_read_for_its_statistics(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    store.put(keys(200), *vectors(200))
    store.close()
    with (tmp_path / "cache" / "data.mdb").open("r+b") as stream:
        stream.truncate(16384)
    with pytest.raises(SetupError, match="16384 bytes of"):
        stat(tmp_path / "cache")


def test_a_store_of_something_else(tmp_path):
    with lmdb.open(str(tmp_path), map_size=MIB) as other, other.begin(write=True) as transaction:
        transaction.put(b"hello", b"world")
    with pytest.raises(SetupError, match="a store of something else"):
        stat(tmp_path)


def _outgrow(folder):
    larger = ReferenceCache(folder, "tiny", FINGERPRINT, WIDTH, 64 * MIB)
    for first in range(10_000, 70_000, 5_000):
        larger.put(keys(5_000, first), *vectors(5_000))
    larger.close()


def test_another_process_that_makes_the_store_larger(tmp_path, opened):
    store, problems = opened(tmp_path / "cache", max_bytes=2 * MIB)
    store.put(keys(5), *vectors(5))
    writer = multiprocessing.get_context("spawn").Process(target=_outgrow, args=(tmp_path / "cache",))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 0
    assert store.find([*keys(5), *keys(5, 60_000)]).known.all()
    assert store.put(keys(5, 5), *vectors(5))
    assert store.find(keys(10)).known.all()
    assert not problems


def test_a_closed_store_knows_nothing_and_harms_nobody(tmp_path, opened):
    store, problems = opened(tmp_path / "cache")
    store.put(keys(5), *vectors(5))
    store.close()
    assert not store.find(keys(5)).known.any()
    assert problems == ["failed"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cache is"):
        ReferenceCache(tmp_path / "file" / "cache", "tiny", FINGERPRINT, WIDTH, MIB)
    with pytest.raises(SetupError, match=r"must be a folder with a data\.mdb"):
        stat(tmp_path)


def _fill(folder, first):
    store = ReferenceCache(folder, "tiny", FINGERPRINT, WIDTH, 16 * MIB)
    for start in range(first, first + 500, 50):
        store.put(keys(50, start), *vectors(50, seed=start))
    store.close()


def test_two_processes_share_one_cache(tmp_path, opened):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_fill, args=(tmp_path / "cache", first)) for first in (0, 500)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store, problems = opened(tmp_path / "cache")
    found = store.find(keys(1000))
    assert found.known.all()
    assert np.array_equal(found.image[50:100], vectors(50, seed=50)[0])
    assert not problems


CONTAINER = """
import os, sys
from pathlib import Path
from selector_server.encoding.lmdb_store import LmdbStore
from selector_server.errors import SetupError
try:
    store = LmdbStore(Path(sys.argv[1]), 1 << 20)
    store.run(lambda transaction: transaction.put(b"key", b"value"), write=True)
    print("process", os.getpid(), "has it", flush=True)
    sys.stdin.read()
except SetupError as error:
    print(error, flush=True)
"""


def test_processes_of_one_number_in_two_containers_cannot_share_one(tmp_path):
    """LMDB takes the second for the first, in whose place it would read what is being overwritten."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("process namespaces need root, and unshare of util-linux")
    pipes = {"program": unshare, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = ["--pid", "--fork", "--kill-child", sys.executable, "-c", CONTAINER, tmp_path]
    first = spawn(*command, **pipes)
    assert first.stdout.readline() == "process 1 has it\n"
    said, _ = spawn(*command, **pipes).communicate(timeout=60)
    assert "a process of another container has it open, whose number there is 1 too" in said
    assert first.communicate(timeout=60) == ("", None)
    said, _ = spawn(*command, **pipes).communicate(timeout=60)
    assert said == "process 1 has it\n", "the lock ended with its owner"


# Merging what is known with what is new


def merged(store, ids, found, fresh, **more):
    return store.merge(ids, found, fresh, 10.0, -5.0, torch.device("cpu"), **more)


def embeddings(count, seed=0):
    image, text = (torch.from_numpy(part.astype(np.float32)) for part in vectors(count, seed))
    return Embedded.normalise(image + 1e-4, text - 1e-4, 10.0, -5.0)


def test_a_merge_has_every_row_in_its_place_and_keeps_the_new_ones(tmp_path, opened):
    store, _ = opened(tmp_path / "cache")
    image, text = vectors(3)
    store.put(keys(3), image, text)
    ids = [*keys(1, 50), *keys(2, 1), *keys(1, 51)]
    fresh = embeddings(2)
    embedded, kept = merged(store, ids, store.find(ids), fresh, wait=True)
    assert kept
    assert (embedded.scale, embedded.bias) == (10.0, -5.0)
    assert embedded.image.dtype is embedded.text.dtype is torch.float32
    for found, old, new in ((embedded.image, image, fresh.image), (embedded.text, text, fresh.text)):
        np.testing.assert_array_equal(found[1:3], old[1:].astype(np.float32))
        torch.testing.assert_close(found[[0, 3]], new.half().float(), rtol=0, atol=0)
        assert not torch.equal(found[[0, 3]], new), "they would be other ones from the cache"
    again, kept = merged(store, ids, store.find(ids), None)
    assert kept
    assert torch.equal(again.image, embedded.image)
    assert torch.equal(again.text, embedded.text)


def test_a_merge_does_not_wait_for_the_disk_unless_told(tmp_path, opened, monkeypatch):
    store, problems = opened(tmp_path / "cache")
    release, put = threading.Event(), store.put
    monkeypatch.setattr(store, "put", lambda *new: release.wait(60) and put(*new))
    for first in range(PENDING_WRITES + 1):
        ids = keys(1, first)
        _, kept = merged(store, ids, store.find(ids), embeddings(1, first))
        assert kept is (first < PENDING_WRITES)
    assert problems == ["busy"]
    release.set()
    store.close()
    again, _ = opened(tmp_path / "cache")
    assert again.find(keys(PENDING_WRITES + 1)).known.tolist() == [True] * PENDING_WRITES + [False]


def test_a_merge_into_a_full_cache_still_has_every_row(tmp_path, opened):
    store, problems = opened(tmp_path / "cache", max_bytes=MIB)
    first = 0
    while store.put(keys(2000, first), *vectors(2000)):
        first += 2000
    ids, fresh = keys(2000, 10**9), embeddings(2000)
    for wait in (True, False):
        embedded, kept = merged(store, ids, store.find(ids), fresh, wait=wait)
        assert not kept
        torch.testing.assert_close(embedded.image, fresh.image.half().float(), rtol=0, atol=0)
    assert problems == ["full"]
