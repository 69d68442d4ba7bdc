"""Full disks and files cut short under the reference cache: the sidecar says so, and lives on or ends in one line."""

import logging
import os
import resource

import lmdb
import numpy as np
import pytest
from selector_tools import cli
from support.disks import BALLAST, fill_up, limited, small_disk
from support.model import samples
from support.pools import arrays
from support.processes import eventually, one_line, run_serve
from support.wire import raw

from selector_server.encoding import reference_cache
from selector_server.encoding.lmdb_store import LOCK_BYTES
from selector_server.encoding.reference_cache import ReferenceCache, stat
from selector_server.errors import SetupError

WIDTH, MIB = 512, 1 << 20
FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", f"size={MIB}") as folder:
        yield folder


@pytest.fixture
def opened():
    """Opens caches that end with the test; `problems` of each are in a list."""
    stores = []

    def start(folder, max_bytes=64 * MIB):
        problems = []
        stores.append(ReferenceCache(folder, "tiny", "ab" * 32, WIDTH, max_bytes, problems.append))
        return stores[-1], problems

    yield start
    for store in stores:
        store.close()


def keys(count, first=0):
    return [b"i" + n.to_bytes(8, "little") for n in range(first, first + count)]


def vectors(count):
    return tuple(np.random.default_rng(part).standard_normal((count, WIDTH)).astype(np.float16) for part in (0, 1))


def put(store, count, first=0) -> bool:
    return store.put(keys(count, first), *vectors(count))


def test_a_sidecar_whose_cache_is_on_a_full_disk_says_so_and_ends(disk, bundles):
    fill_up(disk)
    status, stderr = run_serve(bundles.flags | {"cache": disk / "cache", "metrics_listen": ""})
    assert (status, FULL in one_line(stderr)) == (2, True), (status, stderr)


@pytest.mark.parametrize(("options", "why"), [("nr_inodes=2", FULL), ("ro", "Read-only file system")])
def test_other_disks_on_which_no_cache_can_be_begun(tmp_path, opened, options, why):
    with small_disk(tmp_path / "disk", options) as folder, pytest.raises(SetupError, match=why):
        opened(folder)


def test_there_is_room_for_the_lock_or_none_for_the_data(disk, opened):
    fill_up(disk, leave=LOCK_BYTES)
    with pytest.raises(SetupError, match=FULL):
        opened(disk)


def test_a_running_cache_says_once_that_the_disk_is_full_and_goes_on_when_there_is_room(
    disk, opened, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    store, problems = opened(disk)
    assert put(store, 10)
    fill_up(disk, leave=100_000)
    assert not put(store, 300, 1000)
    assert problems == ["disk"]
    assert FULL in store.problem
    assert not store.put_soon(keys(1, 5000), *vectors(1)), "it is left alone for a while"
    monkeypatch.setattr(reference_cache, "DISK_PAUSE_SECONDS", 0)
    assert not put(store, 300, 1000)
    assert problems == ["disk", "disk"], "the metric goes on"
    assert len([line for line in caplog.messages if FULL in line]) == 1, "the log says it once"
    assert store.find([*keys(10), *keys(5, 1000)]).known.tolist() == [True] * 10 + [False] * 5
    (disk / BALLAST).unlink()
    assert store.put_soon(keys(50, 1000), *vectors(50))
    eventually(lambda: store.find(keys(50, 1000)).known.all())
    eventually(lambda: not store.problem)
    assert "there is room again" in caplog.text


def test_what_a_full_disk_holds_is_used_after_a_restart(disk, opened):
    store, _ = opened(disk)
    put(store, 10)
    store.close()
    fill_up(disk)
    again, problems = opened(disk)
    assert again.find(keys(10)).known.all()
    assert not problems
    again.close()
    (disk / "lock.mdb").unlink()
    fill_up(disk)
    with pytest.raises(SetupError, match=FULL):
        stat(disk)


def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path, opened):
    store, problems = opened(tmp_path)
    put(store, 10)
    with limited(resource.RLIMIT_FSIZE, 200_000):
        assert not put(store, 300, 1000)
    assert problems == ["disk"]
    assert "File too large" in store.problem


def test_a_failed_write_on_a_disk_with_room_is_no_full_disk(tmp_path, opened):
    store, problems = opened(tmp_path)

    def fail(_):
        raise lmdb.Error("Input/output error")

    with pytest.raises(Exception, match="Input/output error"):
        store._store.run(fail, write=True)
    assert store.put([b"x" * 600], *vectors(1)) is False, "a key that is too long"
    assert problems == ["failed"]


def test_a_cache_larger_than_the_addresses_that_the_process_may_have(tmp_path, opened):
    with limited(resource.RLIMIT_AS, 1 << 37), pytest.raises(SetupError, match=r"lower --cache-bytes.*ulimit -v"):
        opened(tmp_path, max_bytes=1 << 40)


@pytest.mark.parametrize("left", [0, 3 * 4096])
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_a_file_that_is_cut_short_in_use_kills_nobody(tmp_path, opened, name, left, caplog):
    store, problems = opened(tmp_path)
    put(store, 100)
    os.truncate(tmp_path / name, left)
    for _ in range(2):
        assert not store.find(keys(100)).known.any()
        assert not put(store, 5)
    assert set(problems) == {"corrupt"}
    assert len([line for line in caplog.messages if f"{name} was cut" in line]) == 1
    assert store.usage() == (0, 0)
    store.close()
    again, _ = opened(tmp_path)
    assert put(again, 5)


def test_a_fill_ends_in_one_line(disk, capsys, tmp_path, bundles):
    fill_up(disk, leave=200_000)
    pool = arrays(tmp_path / "p.npz", 9000)
    command = ["cache", "fill", "--cache", disk / "cache", "--reference", bundles.reference_path, "--pool", pool]
    assert cli.main([str(part) for part in [*command, "--batch", 500]]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "takes no more after" in line
    assert FULL in line


def test_a_sidecar_goes_on_selecting_when_the_disk_gets_full(disk, sidecar, bundles):
    server = sidecar(bundles.flags | {"cache": disk / "cache"})
    fill_up(disk)
    for first in (0, 100):
        request = raw(*samples(40))
        request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(first, first + 40)))
        assert len(server.select(request).indices) == 8
    eventually(lambda: server.metrics()("selector_reference_cache_problems_total", reason="disk") == 1)
    assert server.text.count(FULL) == 1
