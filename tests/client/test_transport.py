"""Large payloads of a trainer beside its sidecar, and all the ways in which shared memory fails."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from selector_client import RemoteError, Selector
from selector_client.selecting import shared_ring
from selector_client.selecting.shared_ring import MAX_SLOTS, Ring
from selector_proto import shared_memory as layout
from selector_proto.shared_memory import is_name
from support.disks import BALLAST, fill_up, limited, small_disk
from support.processes import eventually, spawn

LEARNER, REFERENCE = np.random.default_rng(0).random((2, 50_000), dtype=np.float32)
SCRIPT = """
import sys, time, numpy as np
from selector_client import Selector
selector = Selector(sys.argv[1], policy="independent", on_error="raise", shared_memory=True)
values = np.random.default_rng(0).random((2, 50_000), dtype=np.float32)
print(selector.select_losses(*values).indices[0], flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path):
    return tmp_path / "shm"


def files(place) -> list[str]:
    return sorted(filter(is_name, os.listdir(place)))


def picks(address, **settings):
    with Selector(address, policy="independent", seed=3, on_error="raise", **settings) as selector:
        return selector.select_losses(LEARNER, REFERENCE).indices.tolist()


def selector_of(server, **settings):
    return Selector(server.address, **{"policy": "independent", "seed": 3, "on_error": "raise"} | settings)


def select(selector):
    return selector.select_losses(LEARNER, REFERENCE).indices.tolist()


def test_same_picks_one_file_for_all_requests_and_none_left(sidecar, place):
    server = sidecar({"shared_memory_dir": place})
    wanted = picks(server.address, shared_memory=False)
    with selector_of(server) as selector:
        assert select(selector) == wanted
        [name] = files(place)
        select(selector)
        assert files(place) == [name]
    assert files(place) == []
    assert picks(server.address, shared_memory=True) == wanted


def test_must_and_never(plain_server, sidecar, place):
    with pytest.raises(RemoteError, match="shared-memory-dir"):
        picks(plain_server.address, shared_memory=True)
    with pytest.raises(ValueError, match="not an address of this host"):
        Selector("example.org:1", shared_memory=True)
    server = sidecar({"shared_memory_dir": place})
    with selector_of(server, shared_memory=False) as selector:
        select(selector)
        assert files(place) == []


def test_a_truncated_a_removed_and_a_garbled_file_cost_nothing(sidecar, place):
    server = sidecar({"shared_memory_dir": place})
    with selector_of(server) as selector:
        wanted = [select(selector) for _ in range(1)]
        for number, harm in enumerate((lambda p: os.truncate(p, 0), os.unlink, lambda p: p.write_bytes(b"x")), 1):
            [name] = files(place)
            harm(place / name)
            assert len(select(selector)) == len(wanted[0]), number
            select(selector)
        assert selector.statistics.fallbacks.total() == 0


def test_a_sidecar_restarted_with_another_folder_is_asked_again(sidecar, place, tmp_path):
    server = sidecar({"shared_memory_dir": place})
    with selector_of(server) as selector:
        select(selector)
        server.stop()
        other = tmp_path / "other"
        sidecar({"shared_memory_dir": other}, port=server.port)
        for _ in range(3):
            select(selector)
        assert len(files(other)) == 1


def test_a_full_folder_is_said_once_and_used_again_when_there_is_room(sidecar, tmp_path, caplog):
    with small_disk(tmp_path / "disk", "size=2m") as place:
        server = sidecar({"shared_memory_dir": place})
        fill_up(place, leave=256 << 10)
        with selector_of(server) as selector, selector_of(server, shared_memory=False) as streaming:
            for _ in range(3):
                assert select(selector) == select(streaming)
            assert files(place) == []
            assert len([line for line in caplog.messages if "No space left on device" in line]) == 1
            (place / BALLAST).unlink()
            assert select(selector) == select(streaming)
            assert len(files(place)) == 1


def test_a_limit_of_file_sizes_is_no_room(sidecar, place, caplog):
    server = sidecar({"shared_memory_dir": place})
    wide = np.random.default_rng(0).random((2, 500_000), dtype=np.float32)
    with selector_of(server) as selector, limited(resource.RLIMIT_FSIZE, 1 << 20):
        assert len(selector.select_losses(*wide).indices) == 100_000
    assert "payloads go in the stream, which is slower: [Errno 27] File too large" in caplog.text


def test_a_limit_of_addresses_is_an_error_that_the_stream_makes_up_for(tmp_path):
    ring, data = Ring(str(tmp_path)), memoryview(bytes(1 << 20))
    slot = ring.take()
    with limited(resource.RLIMIT_AS, 0), pytest.raises(OSError, match="Cannot allocate memory"):
        slot.write([data], len(data))
    slot.write([data], len(data))
    ring.give(slot)
    ring.close()


def test_no_free_slot(tmp_path):
    ring = Ring(str(tmp_path))
    slots = [ring.take() for _ in range(MAX_SLOTS)]
    assert ring.take() is None
    ring.give(slots[0])
    assert ring.take() is slots[0]
    ring.close()


def test_killed_client_is_swept_by_the_next_start(sidecar, place):
    server = sidecar({"shared_memory_dir": place})
    client = spawn("-c", SCRIPT, server.address, stdout=subprocess.PIPE)
    assert client.stdout.readline().strip()
    assert len(files(place)) == 1
    client.send_signal(signal.SIGKILL)
    client.wait(10)
    assert len(files(place)) == 1
    Ring(str(place)).close()
    assert files(place) == []


def test_a_forked_child_has_files_of_its_own(tmp_path):
    ring = Ring(str(tmp_path))
    slot = ring.take()
    process = multiprocessing.get_context("fork").Process(target=ring.close)
    process.start()
    process.join(10)
    assert process.exitcode == 0
    assert files(tmp_path) == [slot.name]
    ring.close()
    assert files(tmp_path) == [slot.name], "its request is still under way"
    ring.give(slot)
    assert files(tmp_path) == []


def test_who_truncates_a_file_that_is_being_written_waits(tmp_path, monkeypatch):
    """Pages of a mapped file that are gone would be a bus error, and the trainer's end."""
    ring = Ring(str(tmp_path))
    slot = ring.take()
    size = 8 << 20
    slot.write([memoryview(bytes(size))], size)
    path, copy_all, sizes = tmp_path / slot.name, shared_ring.copy_all, []

    def copy(room, parts, threads):
        script = "import os, sys; os.truncate(sys.argv[1], 0)"
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            sizes.append(path.stat().st_size)
        copy_all(room, parts, threads)
        truncating.append(process)

    truncating = []
    monkeypatch.setattr(shared_ring, "copy_all", copy)
    slot.write([memoryview(bytes(size))], size)
    assert truncating[0].wait(10) == 0
    assert sizes == [layout.PAYLOAD_OFFSET + size], "it waited"
    eventually(lambda: path.stat().st_size < size)
    monkeypatch.undo()
    slot.write([memoryview(bytes(size))], size)
    assert path.stat().st_size == layout.PAYLOAD_OFFSET + size
    ring.give(slot)
    ring.close()


def test_a_file_that_was_cut_and_made_long_again_is_given_its_room_anew(tmp_path):
    """Its holes would be a bus error where the folder is full."""
    ring = Ring(str(tmp_path))
    slot, data = ring.take(), memoryview(bytes(8 << 20))
    slot.write([data], len(data))
    for size in (0, (tmp_path / slot.name).stat().st_size):
        os.truncate(tmp_path / slot.name, size)
    slot.write([data[:10]], 10)
    assert 512 * (tmp_path / slot.name).stat().st_blocks >= layout.PAYLOAD_OFFSET + (1 << 20)
    ring.give(slot)
    ring.close()


def test_threads_that_find_a_sidecar_hung_wait_no_longer_than_their_timeouts(sidecar, place):
    server = sidecar({"shared_memory_dir": place})
    with selector_of(server, timeout=1.0, on_error="fallback") as selector, ThreadPoolExecutor(8) as pool:
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        fallbacks = list(pool.map(lambda _: selector.select_losses(LEARNER, REFERENCE).fallback, range(8)))
        assert time.monotonic() - started < 4, "one after another they would wait 8 s"
        server.signal(signal.SIGCONT)
    assert set(fallbacks) <= {"deadline_exceeded", "unavailable"}
