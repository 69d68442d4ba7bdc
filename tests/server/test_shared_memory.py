"""Payloads in shared memory: what the server reads, and what it refuses."""

import os
import signal
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selector_client import Selector
from selector_client.selecting.shared_ring import Ring
from selector_proto import shared_memory as layout
from selector_proto.copying import read_all
from selector_proto.v1 import selector_pb2 as pb
from support.disks import BALLAST, fill_up, small_disk
from support.processes import one_line, run_serve
from support.wire import some_losses

from selector_server.errors import InvalidRequest, SetupError
from selector_server.rpc import shared_memory
from selector_server.rpc.shared_memory import SharedFolder

DATA = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    shared = SharedFolder(tmp_path / "shm")
    yield shared
    shared.close()


@pytest.fixture
def slot(folder):
    ring = Ring(str(folder.path))
    slot = ring.take()
    slot.write([memoryview(DATA[:1000]), memoryview(DATA[1000:])], len(DATA))
    yield slot
    ring.close()


def where(slot, **changes) -> pb.SharedMemory:
    return pb.SharedMemory(**({"name": slot.name, "generation": slot.generation} | changes))


def refused(folder, where, size=300_000) -> str:
    with pytest.raises(InvalidRequest) as caught:
        folder.read(where, size)
    assert caught.value.field.startswith("shared_memory")
    return str(caught.value)


def test_the_payload_is_read_as_it_was_written_and_its_memory_is_used_again(folder, slot):
    first = folder.read(where(slot), len(DATA))
    assert first == DATA
    assert first.readonly
    address = np.frombuffer(first, np.uint8).ctypes.data
    del first
    slot.write([memoryview(DATA[::-1])], len(DATA))
    second = folder.read(where(slot), len(DATA))
    assert second == DATA[::-1]
    assert np.frombuffer(second, np.uint8).ctypes.data == address


@pytest.mark.parametrize("name", ["", "..", "token", "/etc/passwd", "../token", "selector-" + "0" * 32, "a\0b"])
def test_other_names_are_not_even_looked_for(folder, slot, name):
    assert "must be selector-<32 hex digits>.payload" in refused(folder, where(slot, name=name))


def make(path, kind, target):
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("making a device needs root")


@pytest.mark.parametrize("kind", ["missing", "symlink", "fifo", "directory", "device"])
def test_only_regular_files_are_read(folder, slot, kind):
    name = layout.new_name()
    make(folder.path / name, kind, folder.path / slot.name)
    assert "regular file" in (text := refused(folder, where(slot, name=name))) or "must be a file in" in text


def test_another_generation_another_size_and_garbage(folder, slot):
    assert "shared_memory.generation" in refused(folder, where(slot, generation=slot.generation + 1))
    assert "being written" in refused(folder, where(slot, generation=0))
    assert "header says 300000" in refused(folder, where(slot), len(DATA) - 1)
    assert "the file has" in refused(folder, where(slot), 1 << 30)
    with (folder.path / slot.name).open("r+b") as file:
        file.write(b"garbage!")
    assert "its header" in refused(folder, where(slot))


@pytest.mark.parametrize("what", ["truncated", "rewritten"])
def test_a_file_that_changes_while_it_is_read(folder, slot, what, monkeypatch):
    before = where(slot)

    def read(file, room, offset, threads):
        if what == "truncated":
            os.truncate(folder.path / slot.name, layout.PAYLOAD_OFFSET + 10)
        else:
            slot.write([memoryview(DATA[::-1])], len(DATA))
        return read_all(file, room, offset, threads)

    monkeypatch.setattr(shared_memory, "read_all", read)
    text = refused(folder, before)
    assert ("the file ends before" if what == "truncated" else "must stay until") in text


def test_dead_owners_files_are_swept_and_live_ones_and_others_stay(tmp_path):
    ring = Ring(str(tmp_path))
    live = ring.take()
    dead = layout.new_name()
    (tmp_path / dead).write_bytes(b"left behind")
    (tmp_path / "selector-mine").write_bytes(b"another's")
    folder = SharedFolder(tmp_path)
    assert folder.swept == 1
    folder.close()
    assert set(os.listdir(tmp_path)) == {live.name, "selector-mine", "token", "owner"}
    ring.close()


def test_a_folder_has_one_sidecar_at_a_time_also_by_another_name(tmp_path):
    folder = SharedFolder(tmp_path / "shm")
    before = (folder.path / "token").read_text()
    (other := folder.path.parent / "link").symlink_to(folder.path)
    with pytest.raises(SetupError, match=f"another sidecar has it, process {os.getpid()} on {socket.gethostname()}; "):
        SharedFolder(other)
    assert (folder.path / "token").read_text() == before
    folder.close()
    SharedFolder(other).close()


def test_a_folder_that_dead_clients_filled_has_room_again_and_a_full_one_is_told(tmp_path):
    with small_disk(tmp_path / "disk", "size=1m") as path:
        fill_up(path)
        with pytest.raises(SetupError, match=r"shared_memory_dir is .*No space left on device"):
            SharedFolder(path)
        assert set(os.listdir(path)) <= {BALLAST, "owner"}, "nothing half written is left behind"
        (path / BALLAST).rename(path / layout.new_name())
        folder = SharedFolder(path)
        assert folder.swept == 1
        folder.close()


@given(st.binary(max_size=64))
def test_no_header_surprises_the_decoder(data):
    try:
        header = layout.Header.decode(data)
    except layout.HeaderError:
        return
    assert header.encode() == data


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_headers_survive(generation, size):
    header = layout.Header(generation, size)
    assert layout.Header.decode(header.encode()) == header


# Through a sidecar


@pytest.fixture(scope="module")
def sharing(start_sidecars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with start_sidecars() as start:
        yield start({"shared_memory_dir": folder, "max_payload_bytes": 1 << 20})


def shared_request(ring):
    request = some_losses(seed=1)
    slot = ring.take()
    slot.write([memoryview(request.payload)], len(request.payload))
    return request, request.set(shared_memory=where(slot), payload_bytes=len(request.payload)).selection


def test_picks_are_those_of_the_stream_and_the_server_stays_whole(sharing):
    ring = Ring(sharing.info().shared_memory_dir)
    request, header = shared_request(ring)
    reply = sharing.stub.Select(iter([pb.SelectRequest(selection=header)]), timeout=20)
    assert reply.indices == sharing.select(some_losses(seed=1)).indices

    def details(*messages):
        return sharing.refuse(messages).details()

    payload = pb.SelectRequest(payload=request.payload)
    assert "none for the stream" in details(pb.SelectRequest(selection=header), payload)
    header.payload_crc32 = 1
    assert "payload_crc32 is 1" in details(pb.SelectRequest(selection=header))
    header.payload_bytes = 1 << 30
    assert sharing.refuse([pb.SelectRequest(selection=header)]).code().name == "RESOURCE_EXHAUSTED"
    ring.close()
    sharing.wait_pending(0)


def test_a_second_sidecar_ends_in_a_line_and_a_killed_ones_folder_is_taken_over(sidecar, tmp_path):
    first = sidecar({"shared_memory_dir": tmp_path})
    status, stderr = run_serve({"shared_memory_dir": tmp_path, "listen": "127.0.0.1:0", "metrics_listen": ""})
    assert status == 2
    assert f"another sidecar has it, process {first.process.pid} on" in one_line(stderr)
    with Selector(first.address, policy="independent", shared_memory=True, on_error="raise") as selector:
        selector.select_losses(*np.zeros((2, 50_000), np.float32))
    first.signal(signal.SIGKILL)
    first.process.wait(10)
    second = sidecar({"shared_memory_dir": tmp_path})
    assert f"process {second.process.pid} on" in (tmp_path / "owner").read_text()


def test_a_server_without_a_folder_refuses(plain_server):
    request = some_losses().set(shared_memory=pb.SharedMemory(name="x", generation=1), payload_bytes=160)
    error = plain_server.refuse([pb.SelectRequest(selection=request.selection)])
    assert "this server has none" in error.details()


def test_the_metric_counts_what_was_swept(sidecar, tmp_path):
    (tmp_path / layout.new_name()).write_bytes(b"x")
    assert sidecar({"shared_memory_dir": tmp_path}).metrics()("selector_shm_swept_total") == 1
