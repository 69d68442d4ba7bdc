"""One fetch for all sidecars of a host."""

import multiprocessing
import stat
import threading

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from support.disks import BALLAST, fill_up, small_disk
from support.model import TwoTower, as_published, plan, samples
from support.processes import eventually
from support.redis_servers import valkey_server
from support.wire import raw

from selector_server.errors import SetupError
from selector_server.weights import host_share
from selector_server.weights.fetcher import Fetcher, Incomplete
from selector_server.weights.host_share import HostShare

BIG = {"w": np.random.default_rng(0).standard_normal((3000, 1000)).astype(np.float32)}


@pytest.fixture
def published(redis_url, run_name):
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, BIG)
        assert publisher.flush()
        yield redis_url, run_name, publisher


def fetch(url, run, folder, version=1) -> bytes:
    fetcher = Fetcher(url, run, 1 << 30, share=HostShare(folder))
    try:
        return bytes(fetcher.fetch(version, fetcher.manifest(version)).tensors["w"].data)
    finally:
        fetcher.close()


def _count(url, run, folder, answers):
    answers.put(fetch(url, run, folder) == BIG["w"].tobytes())


def gets(client) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "getrange"))


@pytest.fixture
def quiet_url():
    """A server that nobody else asks."""
    server = valkey_server()
    yield server.connection_url
    server.stop()


def test_four_processes_fetch_once(quiet_url, run_name, tmp_path):
    url, run = quiet_url, run_name
    with WeightPublisher(url, run, dtype="fp32") as publisher:
        publisher.publish(1, BIG)
        assert publisher.flush()
    client, spawn = redis.Redis.from_url(url), multiprocessing.get_context("spawn")
    answers, before = spawn.Queue(), gets(client)
    readers = [spawn.Process(target=_count, args=(url, run, tmp_path / "share", answers)) for _ in range(4)]
    for reader in readers:
        reader.start()
    assert [answers.get(timeout=60) for _ in readers] == [True] * 4
    assert gets(client) - before == 12 + 4, "twelve chunks once, and each its manifest"


def test_a_share_that_was_tampered_with_is_not_believed_and_then_forgotten(published, tmp_path):
    url, run, _ = published
    folder = tmp_path / "share"
    assert fetch(url, run, folder) == BIG["w"].tobytes()
    [file] = folder.glob("*.weights")
    content = bytearray(file.read_bytes())
    content[5_000_000] ^= 1
    file.write_bytes(content)
    with pytest.raises(Incomplete, match="BLAKE3 of chunk 4 does not match"):
        fetch(url, run, folder)
    assert fetch(url, run, folder) == BIG["w"].tobytes()
    file.write_bytes(b"short")
    assert fetch(url, run, folder) == BIG["w"].tobytes()


@pytest.mark.parametrize("piece", [1000, 1 << 20, 1 << 40])
def test_what_is_larger_than_one_read_is_shared_too(published, tmp_path, monkeypatch, piece):
    """As what has more than 2 GiB is."""
    url, run, _ = published
    monkeypatch.setattr(host_share, "_PIECE_BYTES", piece)
    assert fetch(url, run, tmp_path / "share") == BIG["w"].tobytes()
    client = redis.Redis.from_url(url)
    for key in client.scan_iter(f"*{{{run}}}*chunk*"):
        client.delete(key)
    assert fetch(url, run, tmp_path / "share") == BIG["w"].tobytes(), "nothing of it came from Redis"


def test_only_the_last_two_stay(published, tmp_path):
    url, run, publisher = published
    for step in range(2, 6):
        publisher.publish(step, {"w": np.full(100_000, step, np.float32)})
        assert publisher.flush()
        fetch(url, run, tmp_path / "share", version=step)
    assert len(list((tmp_path / "share").glob("*.weights"))) == 2
    assert stat.S_IMODE((tmp_path / "share").stat().st_mode) == 0o700
    assert len(list((tmp_path / "share").iterdir())) == 4, "and their locks"


def test_a_holder_that_hangs_is_not_waited_for_for_ever(published, tmp_path, monkeypatch):
    url, run, _ = published
    monkeypatch.setattr("selector_server.weights.host_share.LOCK_SECONDS", 0.2)
    fetcher = Fetcher(url, run, 1 << 30)
    digest, share, held = (
        fetcher.fetch(1, fetcher.manifest(1)).manifest.payload_blake3,
        HostShare(tmp_path / "s"),
        threading.Event(),
    )
    go = threading.Event()

    def hang():
        held.set()
        go.wait(20)

    holder = threading.Thread(target=share.fill, args=(memoryview(bytearray(1)), digest, hang))
    holder.start()
    held.wait(5)
    assert fetch(url, run, tmp_path / "s") == BIG["w"].tobytes()
    go.set()
    holder.join()
    fetcher.close()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="weights_share is"):
        HostShare(tmp_path / "file" / "share")


def test_a_full_folder_costs_the_sharing_and_not_the_weights(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "size=1m") as folder:
        share, digest, payload = HostShare(folder), bytes(32), memoryview(bytearray(300_000))
        fill_up(folder, leave=100_000)
        fetched = []
        assert not share.fill(payload, digest, lambda: fetched.append(1))
        assert fetched == [1]
        assert "weights are not shared on this host: [Errno 28] No space left on device" in caplog.text
        assert {file.suffix for file in folder.iterdir()} == {"", ".lock"}, "nothing half written is left"
        (folder / BALLAST).unlink()
        assert not share.fill(payload, digest, lambda: fetched.append(2))
        assert share.fill(payload, digest, lambda: fetched.append(3))
        assert fetched == [1, 2]


def test_two_sidecars_serve_what_one_of_them_fetched(sidecar, bundles, redis_url, run_name, tmp_path):
    flags = bundles.flags | {"redis": redis_url, "run": run_name, "weights_share": tmp_path / "share"}
    servers, model = [sidecar(flags) for _ in range(2)], TwoTower(31)
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, model)
        assert publisher.flush()
    pixels, ids = samples(30)
    for server in servers:
        eventually(lambda server=server: server.status().serving.version == 1)
        picks = bundles.picks(pixels, ids, plan(6, 6, seed=3), learner=as_published(model))
        assert list(server.select(raw(pixels, ids, seed=3)).indices) == picks
