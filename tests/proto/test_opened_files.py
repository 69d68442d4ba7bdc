"""Files in a folder where strangers put something else."""

import os

import pytest
from selector_proto.files import opened
from selector_proto.weights.folder_store import FolderStore
from selector_proto.weights.store import StoreUnavailable

from selector_server.weights.host_share import HostShare

DIGEST = b"d" * 32


def put(path, kind):
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.with_name("target").write_bytes(b"content")
            path.symlink_to("target")
        case "device":
            path.symlink_to("/dev/zero")


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with opened(tmp_path / "file") as stream:
        assert stream.read() == b"content"
    with pytest.raises(ValueError, match="closed"):
        stream.read()


@pytest.mark.timeout(10)  # a FIFO's other end never comes
@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "device"])
def test_anything_else_is_refused(tmp_path, kind):
    put(tmp_path / "file", kind)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"not a regular file|symbolic links"):
        with opened(tmp_path / "file"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before

    put(tmp_path / "key.value", kind) if kind != "link" else (tmp_path / "key.value").symlink_to("target")
    store = FolderStore(tmp_path)
    for ask in (
        lambda: store.get("key"),
        lambda: store.first_bytes("key", 9),
        lambda: list(store.read_into(["key"], [memoryview(bytearray(9))])),
    ):
        with pytest.raises(StoreUnavailable):
            ask()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "device"])
def test_a_share_with_something_else_in_it_is_not_used(tmp_path, kind):
    share = HostShare(tmp_path)
    put(tmp_path / f"{DIGEST.hex()}.weights", kind)
    payload, fetched = memoryview(bytearray(7)), []
    assert not share.fill(payload, DIGEST, lambda: fetched.append(1))
    assert fetched
