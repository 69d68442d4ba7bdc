"""What a transport is: a store, a line in the table, and errors in one language."""

import socket
import threading
import time

import numpy as np
import pytest
import redis
from selector_client import LinkOptions, WeightPublisher
from selector_proto import files
from selector_proto.weights.layout import Keys, outranks
from selector_proto.weights.link import LinkError
from selector_proto.weights.store import StoreError, StoreRefused, StoreUnavailable
from selector_proto.weights.transports import TRANSPORTS, Transport, check_link, open_store
from support.processes import eventually, free_port

from selector_server.telemetry.metrics import Metrics
from selector_server.weights.dating import Dated
from selector_server.weights.fetcher import Fetcher, News
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import SyncState, Version, Versions


class Place:
    """What all stores of one URL share."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.moved = threading.Condition()
        self.down = False


class MemoryStore:
    """Weights in this process's memory: a whole transport, thrown away after the test."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def _values(self) -> dict[str, bytes]:
        if self._place.down:
            raise StoreUnavailable("the memory is down")
        return self._place.values

    def get(self, key):
        return self._values.get(key)

    def first_bytes(self, key, count):
        return self._values.get(key, b"")[:count]

    def put_all(self, items, ttl):
        for key, value in items:
            self._values[key] = bytes(value)

    def read_into(self, keys, rooms):
        for key, room in zip(keys, rooms, strict=True):
            value = self._values.get(key, b"")
            room[: len(value)] = value
            yield len(value)

    def delete(self, *keys):
        return sum(self._values.pop(key, None) is not None for key in keys)

    def next_version(self, keys, owner, above, ttl):
        if outranks(self._values.get(keys.owner), owner):
            return -1
        number = max(int(self._values.get(keys.counter, 0)), above) + 1
        self._values.update({keys.owner: owner.encode(), keys.counter: b"%d" % number})
        return number

    def move_pointer(self, keys, owner, version, manifest, ttl):
        if outranks(self._values.get(keys.owner), owner):
            return -1
        with self._place.moved:
            self._values.update({keys.manifest(version): manifest, keys.pointer: b"%d" % version})
            self._place.moved.notify_all()
        return version

    def renew(self, names, ttl):
        return all(name in self._values for name in names)

    def left_behind(self, keys):
        return {}

    def clock(self, key):
        return time.time()

    def danger(self, key):
        return ""

    def listen(self, channel):
        def wait(seconds):
            with self._place.moved:
                return self._place.moved.wait(seconds)

        return wait

    def close(self):
        pass


@pytest.fixture
def place(monkeypatch):
    """A transport of its own, by one line in the table."""
    place = Place()
    monkeypatch.setitem(TRANSPORTS, "memory", Transport("memory://name", lambda *_: MemoryStore(place)))
    return place


def tensors(value):
    return {"w": np.full((700, 1000), value, np.float32)}  # three chunks


def test_a_store_and_a_line_in_the_table_are_enough_for_publisher_and_fetcher(place):
    fetcher = Fetcher("memory://here", "run", 1 << 30)
    assert fetcher.newest() == 0
    with WeightPublisher("memory://here", "run", dtype="fp32") as publisher:
        for value in (1, 2):
            assert publisher.publish(value, tensors(value))
            assert publisher.flush(), publisher.last_error
    version = fetcher.newest()
    fetched = fetcher.fetch(version, fetcher.manifest(version))
    assert (version, fetched.manifest.trainer_step) == (2, 2)
    assert set(np.frombuffer(fetched.tensors["w"].data, np.float32)) == {2}
    fetcher.close()


def test_its_errors_are_waited_out_on_both_sides(place):
    versions = Versions(Version(0, 0, Dated(0.0), b""))
    fetcher, news = Fetcher("memory://here", "run", 1 << 30), News("memory://here", "run")
    follower = Subscriber(fetcher, versions, lambda found, _: bytes(found["w"].data), Metrics(), 0.05, news)
    follower.start()
    try:
        with WeightPublisher("memory://here", "run", dtype="fp32") as publisher:
            assert publisher.publish(1, tensors(1))
            eventually(lambda: versions.current.version == 1)
            place.down = True
            assert publisher.publish(2, tensors(2))
            eventually(lambda: publisher.last_error == "the memory is down")
            eventually(lambda: versions.status.state is SyncState.DISCONNECTED)
            assert (versions.status.last_error, versions.current.version) == ("the memory is down", 1)
            place.down = False
            assert publisher.flush()
            eventually(lambda: versions.current.trainer_step == 2)
            assert versions.current.weights == tensors(2)["w"].tobytes()
    finally:
        follower.stop()


def test_people_are_told_of_it(place):
    check_link("memory://here")
    with pytest.raises(LinkError, match=r"redis://.* or file:///folder or memory://name; its scheme is unknown"):
        check_link("tape://here")
    with pytest.raises(LinkError, match="must be above 0 and at most 3600") as error:
        open_store("memory://here", LinkOptions(timeout_seconds=0))
    assert error.value.option == "timeout_seconds"


def test_every_scheme_is_in_the_one_table():
    servers = {f"{base}{kind}" for base in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")}
    assert set(TRANSPORTS) == servers | {"unix", "file"}


# Errors of libraries end where they are called


def everything(store):
    """All that publishers and readers ask of a store."""
    keys, room = Keys("run"), memoryview(bytearray(9))
    return {
        "get": lambda: store.get("key"),
        "first_bytes": lambda: store.first_bytes("key", 9),
        "put_all": lambda: store.put_all([("key", memoryview(b"value"))], 60),
        "read_into": lambda: list(store.read_into(["key"], [room])),
        "delete": lambda: store.delete("key"),
        "next_version": lambda: store.next_version(keys, "1 a", 0, 60),
        "move_pointer": lambda: store.move_pointer(keys, "1 a", 1, b"", 60),
        "clock": lambda: store.clock("key"),
        "renew": lambda: store.renew(["key"], 60),
    }


@pytest.mark.parametrize("call", everything(None))
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_redis_that_is_not_there_is_unavailable(scheme, call):
    store = open_store(f"{scheme}://127.0.0.1:{free_port()}", LinkOptions(timeout_seconds=1))
    with pytest.raises(StoreUnavailable):
        everything(store)[call]()


@pytest.mark.parametrize("call", ["get", "first_bytes", "read_into"])
def test_a_value_of_another_type_is_refused(redis_url, run_name, call):
    client = redis.Redis.from_url(redis_url)
    client.delete("key")
    client.lpush("key", "x")
    try:
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            everything(open_store(redis_url))[call]()
    finally:
        client.delete("key")


@pytest.mark.parametrize("answer", [b"%1\r\n:1\r\n:2\r\n" * 9, b"$-7\r\n" * 9, b"x" * 10_000])
def test_nonsense_is_a_store_error_too(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for _ in range(9):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        store = open_store(f"redis://127.0.0.1:{listener.getsockname()[1]}", LinkOptions(timeout_seconds=1))
        with pytest.raises(StoreError):
            store.get("key")


@pytest.mark.parametrize("call", [name for name in everything(None) if name != "renew"])
def test_a_folder_that_is_gone_is_unavailable(tmp_path, call):
    (tmp_path / "folder").mkdir()
    store = open_store((tmp_path / "folder").as_uri(), write=True)
    (tmp_path / "folder").rmdir()
    with pytest.raises(StoreUnavailable, match=r"it is gone|No such file"):
        everything(store)[call]()


def test_a_folder_without_room_refuses(tmp_path, monkeypatch):
    def full(*_, **__):
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"x")

    store = open_store(tmp_path.as_uri(), write=True)
    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(StoreRefused, match="No space left on device"):
        store.put_all([("key", memoryview(b"value"))], 60)
