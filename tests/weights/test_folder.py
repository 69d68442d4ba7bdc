"""Weights through a folder that trainer and sidecar share, instead of Redis."""

import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from urllib.parse import unquote

import numpy as np
import pytest
from selector_client import WeightPublisher
from selector_client.publishing import shipping
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights import folder_store
from selector_proto.weights.folder_store import FolderStore
from selector_proto.weights.layout import Keys
from selector_proto.weights.store import StoreError, StoreRefused, StoreUnavailable
from selector_proto.weights.transports import open_store
from support.model import TwoTower, as_published, plan, samples
from support.processes import eventually, spawn
from support.wire import raw

from selector_server.config import load
from selector_server.errors import SetupError
from selector_server.weights.fetcher import Fetcher, Incomplete

KEYS = Keys("run")


def tensors(value, rows=600):
    return {"w": np.full((rows, 1000), value, np.float32)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared volume").mkdir()
    return tmp_path / "shared volume"


@pytest.fixture
def url(folder):
    return f"file://{str(folder).replace(' ', '%20')}"


def read(url, run="run", version=None):
    fetcher = Fetcher(url, run, 1 << 30)
    version = version or fetcher.newest()
    fetched = fetcher.fetch(version, fetcher.manifest(version))
    fetcher.close()
    return fetched


def values(fetched) -> set[float]:
    return set(np.unique(np.frombuffer(fetched.tensors["w"].data, np.float32)).tolist())


def put(store, key, value) -> None:
    store.put_all([(key, memoryview(value))], 60)


def publish(publisher, value, **options) -> int:
    assert publisher.publish(value, tensors(value, **options))
    assert publisher.flush(20), publisher.last_error
    return publisher.last_version


def test_what_is_published_is_read_and_only_the_last_versions_stay(folder, url, monkeypatch):
    monkeypatch.setattr(shipping, "HOLD_SECONDS", 0)
    assert Fetcher(url, "run", 1 << 30).newest() == 0
    with WeightPublisher(url, "run", keep=3, dtype="fp32") as publisher:
        assert [publish(publisher, value) for value in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert values(read(url)) == {6}
    assert read(url).manifest.trainer_step == 6
    assert values(read(url, version=4)) == {4}
    with pytest.raises(Incomplete, match="manifest of version 3 is missing"):
        read(url, version=3)
    files = [file for file in folder.iterdir() if file.name != ".lock"]
    assert len(files) == 3 + 3 * (1 + 1 + 3), (
        "three of the run, and three versions of a manifest, a clock and three chunks"
    )
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
    assert not [file for file in files if file.name.endswith(".unfinished")]
    with WeightPublisher(url, "run") as publisher:
        assert publish(publisher, 7) == 7, "another trainer counts on"
    with pytest.raises(Incomplete):
        read(url, run="other", version=7)


def test_runs_keep_apart(url):
    with WeightPublisher(url, "one") as one, WeightPublisher(url, "two") as two:
        assert (publish(one, 1), publish(one, 2), publish(two, 8)) == (1, 2, 1)
    assert (values(read(url, "one", 1)), values(read(url, "two", 1))) == (set(read_bf16(1)), set(read_bf16(8)))


def read_bf16(value) -> list[float]:
    """The value in bfloat16, twice, as float32 sees it."""
    bits = np.full(2, value, np.float32).view(np.uint32) >> 16
    return np.frombuffer(bits.astype(np.uint16).tobytes(), np.float32).tolist()


@pytest.mark.parametrize("spoil", ["shorter", "empty", "gone", "other bytes"])
def test_a_torn_payload_is_refused(folder, url, spoil):
    with WeightPublisher(url, "run", dtype="fp32") as publisher:
        publish(publisher, 1)
        version = publish(publisher, 2)
    [file] = [file for file in folder.iterdir() if fnmatch(file.name, f"*%3A{version}%3Achunk%3A*%3A1.value")]
    data = file.read_bytes()
    if spoil == "gone":
        file.unlink()
    else:
        file.write_bytes({"shorter": data[:-1], "empty": b"", "other bytes": data[:-1] + b"?"}[spoil])
    with pytest.raises(Incomplete, match="BLAKE3" if spoil == "other bytes" else "chunk 1 has"):
        read(url)
    assert values(read(url, version=1)) == {1}


def test_the_second_publisher_fences_off_the_first(url):
    with WeightPublisher(url, "run", dtype="fp32") as one, WeightPublisher(url, "run", dtype="fp32") as two:
        publish(one, 1)
        publish(two, 2)
        one.publish(3, {"w": np.float32(3)})
        eventually(lambda: one.fenced)
        publish(two, 4)
    assert values(read(url)) == {4}


def test_numbers_are_given_once_across_processes(folder):
    code = (
        "import sys, threading; from selector_proto.weights.folder_store import FolderStore\n"
        "store = FolderStore(sys.argv[1])\n"
        "from selector_proto.weights.layout import Keys\n"
        "more = lambda: [store.next_version(Keys('run'), '1 token', 0, 60) for _ in range(50)]\n"
        "threads = [threading.Thread(target=more) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    processes = [spawn("-c", code, folder) for _ in range(3)]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    assert FolderStore(folder).get(Keys("run").counter) == b"300"


def test_numbers_and_the_pointer_are_on_the_disk_before_anybody_sees_them(folder, monkeypatch):
    durable, replace = [], folder_store.files.replace

    def watched(file, *arguments, **options):
        if options["durable"]:
            durable.append(unquote(file.name))
        replace(file, *arguments, **options)

    monkeypatch.setattr(folder_store.files, "replace", watched)
    store, owner = FolderStore(folder, write=True), f"{1 << 50} me"
    assert store.move_pointer(KEYS, owner, store.next_version(KEYS, owner, 0, 60), b"manifest", 60) == 1
    assert [name.rpartition(".")[0] for name in durable] == [KEYS.counter, KEYS.pointer]


def test_readers_see_whole_versions_only(url):
    stop, whole, dropped = threading.Event(), [], []

    def follow():
        fetcher = Fetcher(url, "run", 1 << 30)
        while not stop.is_set():
            if version := fetcher.newest():
                text = fetcher.manifest(version)
                try:
                    fetched = fetcher.fetch(version, text)
                except Incomplete as error:
                    assert fetcher.newest() > version + 1, error  # it was swept meanwhile
                    dropped.append(version)
                else:
                    assert values(fetched) == {fetched.manifest.trainer_step}
                    whole.append(version)

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(follow) for _ in range(3)]
        try:
            with WeightPublisher(url, "run", keep=3, dtype="fp32") as publisher:
                for value in range(50):
                    publish(publisher, value)
                eventually(lambda: 50 in whole)
        finally:
            stop.set()
        for reader in readers:
            reader.result(20)
    assert len(set(whole)) > 10
    assert whole.count(50) >= 1
    assert len(dropped) < len(whole)


def test_a_sidecar_serves_what_is_in_the_folder(sidecar, bundles, url, folder):
    pixels, ids = samples(60)
    flags = {"redis": url, "run": "run", "weights_poll_seconds": 0.05}
    model = TwoTower(3)
    with WeightPublisher(url, "run") as publisher:
        publisher.publish(5, model)
        assert publisher.flush()
        server = sidecar(bundles.flags | flags)
        status = eventually(lambda: (s := server.status()).serving.version == 1 and s)
        assert (status.serving.trainer_step, status.source) == (5, url)
        picks = server.select(raw(pixels, ids, seed=3)).indices
        assert list(picks) == bundles.picks(pixels, ids, plan(12, seed=3), learner=as_published(model))
        publisher.publish(6, TwoTower(4))
        assert publisher.flush()
        eventually(lambda: server.status().serving.version == 2)
    # The volume goes, and comes back.
    folder.rename(folder.with_name("away"))
    status = eventually(lambda: (s := server.status()).state == pb.SYNC_STATE_DISCONNECTED and s)
    assert "it is gone" in status.last_error
    assert status.serving.version == 2
    folder.with_name("away").rename(folder)
    eventually(lambda: server.status().state == pb.SYNC_STATE_CURRENT)


def test_a_folder_that_goes_away_is_waited_for(folder, url):
    with WeightPublisher(url, "run") as publisher:
        publish(publisher, 1)
        folder.rename(folder.with_name("away"))
        assert publisher.publish(2, tensors(2))
        eventually(lambda: "No such file or directory" in publisher.last_error)
        fetcher = Fetcher(f"{url.rpartition('/')[0]}/away", "run", 1 << 30)
        assert fetcher.newest() == 1
        folder.with_name("away").rename(folder)
        assert publisher.flush(20)
        with pytest.raises(StoreUnavailable, match="it is gone"):  # not: nothing was published
            fetcher.newest()
        with pytest.raises(StoreUnavailable, match="it is gone"):
            fetcher.manifest(1)
    assert read(url).manifest.trainer_step == 2


def test_mistakes(tmp_path, folder, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ValueError, match=f"^file://{path}; must be a folder that exists"):
            WeightPublisher(f"file://{path}", "run")
        with pytest.raises(SetupError, match=f"^redis is file://{path}; must be a folder that exists"):
            load({"redis": f"file://{path}"}, {}, None)
    with pytest.raises(ValueError, match="must be a folder that exists"):
        open_store(f"file:///{'long' * 100}")
    # Permissions do not stop the administrator, whom tests may run as: /sys is a folder that nobody can write to.
    with pytest.raises(ValueError, match=r"^/sys/kernel; must be a folder that can be written"):
        WeightPublisher("file:///sys/kernel", "run")
    assert open_store("file:///sys/kernel").get("x") is None, "but it may be read"
    store = FolderStore(folder)
    put(store, KEYS.counter, b"five")
    with pytest.raises(StoreRefused, match="counter holds b'five', not a number"):
        store.next_version(KEYS, "1 token", 0, 60)
    with pytest.raises(StoreError, match="File name too long"):
        put(store, "n" * 300, b"")
    monkeypatch.setattr(folder_store, "LOCK_SECONDS", 0.1)
    with store.locked(), pytest.raises(StoreUnavailable, match=r"locked by another for 0\.1 s"):
        FolderStore(folder).next_version(Keys("other"), "1 token", 0, 60)
    assert store.next_version(Keys("other"), "1 token", 0, 60) == 1, "a lock ends with its holder"


@pytest.mark.parametrize(
    "key", ["..", ".", "", "../up", "/etc/passwd", ".lock", "a/../../b", "\0", "ü\n", "%2F", "a%2Fb"]
)
def test_no_key_leads_out_of_the_folder(folder, key):
    store = FolderStore(folder)
    put(store, key, b"value")
    assert (store.get(key), store.first_bytes(key, 2)) == (b"value", b"va")
    [file] = folder.iterdir()
    assert file.name.endswith(".value")
    assert os.listdir(folder.parent) == [folder.name]
    assert (store.delete(key, "other"), store.get(key), store.first_bytes(key, 9)) == (1, None, b"")


def test_it_does_what_redis_does(folder, redis_url, run_name):
    """The same calls have the same results."""
    keys, results = Keys(run_name), []
    for store in (FolderStore(folder), open_store(redis_url)):
        key = keys.chunk(1, "token", 0)
        before = store.get(key), store.first_bytes(key, 4), store.delete(key)
        store.put_all([(key, memoryview(b"0123456789")), (keys.manifest(1), memoryview(b"text"))], 60)
        after = store.get(key), store.first_bytes(key, 3), store.first_bytes(key, 99), store.get(keys.manifest(1))
        a, b, later = "5 a", "5 b", "6 c"
        counted = [store.next_version(keys, owner, above, 60) for owner, above in ((a, 0), (a, 7), (b, 0), (a, 2))]
        moved = [store.move_pointer(keys, a, version, b"%d" % version, 60) for version in (3, 2, 3, 12, 9)]
        moved.append(store.move_pointer(keys, b, 13, b"13", 60))
        shown = [store.get(keys.manifest(version)) for version in (2, 3, 9, 12, 13)]
        counted += [store.next_version(keys, owner, 0, 60) for owner in (later, a, later)]
        renewed = store.renew([keys.counter, keys.owner], 60), store.renew([keys.counter, keys.manifest(9)], 60)
        gone = store.delete(key, keys.manifest(1), keys.manifest(9))
        results.append((before, after, counted, moved, shown, renewed, store.get(keys.owner), gone, store.get(key)))
        store.close()
    assert results[0] == results[1]
    assert results[0][2:4] == ([1, 8, -1, 9, 13, -1, 14], [3, 3, 3, 12, 12, -1])
    assert results[0][4:7] == ([None, b"3", None, b"12", None], (True, False), b"6 c")


def test_what_a_killed_publisher_left_half_written_is_swept(folder, url):
    old, fresh = folder / ".old.unfinished", folder / ".fresh.unfinished"
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    WeightPublisher(url, "run").close()
    assert not old.exists()
    assert fresh.exists(), "another publisher may be writing it"
