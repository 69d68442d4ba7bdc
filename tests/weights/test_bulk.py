"""Large values to and from Redis over one connection, against a real server."""

import socket
import threading
import time

import numpy as np
import pytest
import redis
from selector_proto.weights import redis_bulk
from support.processes import eventually
from support.redis_servers import valkey_server

MIB = 1 << 20


@pytest.fixture
def client(redis_url, run_name):
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        yield client


def rooms(*sizes):
    return [memoryview(bytearray(size)) for size in sizes]


def values(count, size=MIB):
    return [np.random.default_rng(i).integers(0, 256, size - i, np.uint8).data for i in range(count)]


@pytest.mark.parametrize("protocol", [2, 3])
def test_values_come_back_as_they_went(redis_url, run_name, protocol):
    with redis.Redis.from_url(redis_url, protocol=protocol) as client:
        sent = [*values(9), memoryview(b""), memoryview(b"x"), memoryview(b"\r\n$3\r\nabc\r\n")]
        keys = [f"{run_name}:{i}" for i in range(len(sent))]
        redis_bulk.write(client, zip(keys, sent, strict=True), 60)
        back = rooms(*(len(value) for value in sent))
        assert list(redis_bulk.read(client, keys, back)) == [len(value) for value in sent]
        assert [bytes(room) for room in back] == [bytes(value) for value in sent]
        assert 0 < client.ttl(keys[0]) <= 60
        assert client.ping(), "the connection is still in step"


def test_health_checks_of_the_connection_do_not_come_between(redis_url, run_name):
    """A URL may ask for them; their answers would be mixed up with those of the transfer."""
    keys, sent = [f"{run_name}:{i}" for i in range(9)], values(9)

    def with_a_pause(items):
        for number, item in enumerate(items):
            if number == 2:
                time.sleep(1.1)
            yield item

    with redis.Redis.from_url(f"{redis_url}?health_check_interval=1", socket_timeout=5) as client:
        redis_bulk.write(client, with_a_pause(zip(keys, sent, strict=True)), 60)
        back = rooms(*(len(value) for value in sent))
        lengths = list(with_a_pause(redis_bulk.read(client, keys, back)))
    assert lengths == [len(value) for value in sent]
    assert [bytes(room) for room in back] == [bytes(value) for value in sent]


def test_a_missing_value_is_empty_and_the_others_come(client, run_name):
    client.set(f"{run_name}:b", b"there")
    back = rooms(10, 10)
    assert list(redis_bulk.read(client, [f"{run_name}:a", f"{run_name}:b"], back)) == [0, 5]
    assert bytes(back[1][:5]) == b"there"


def test_a_value_longer_than_its_room_is_not_received(client, run_name):
    client.set(f"{run_name}:long", bytes(50 * MIB))
    client.set(f"{run_name}:next", b"next")
    back = rooms(10, 10)
    assert list(redis_bulk.read(client, [f"{run_name}:long", f"{run_name}:next"], back)) == [50 * MIB]
    assert bytes(back[0]) == bytes(10)
    assert client.get(f"{run_name}:next") == b"next", "the connection was left behind"


def test_a_reader_that_stops_early_leaves_no_answer_behind(client, run_name):
    keys = [f"{run_name}:{i}" for i in range(8)]
    redis_bulk.write(client, zip(keys, values(8), strict=True), 60)
    reading = redis_bulk.read(client, keys, rooms(*[MIB] * 8))
    next(reading)
    reading.close()
    assert client.echo("hello") == b"hello"


def test_a_key_of_another_type_is_an_error_and_the_client_goes_on(client, run_name):
    client.lpush(f"{run_name}:list", "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        list(redis_bulk.read(client, [f"{run_name}:list"], rooms(10)))
    assert client.ping()


def test_a_full_server_refuses_and_the_client_goes_on(run_name):
    server = valkey_server(config={"maxmemory": "20mb", "maxmemory-policy": "noeviction"})
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            with pytest.raises(redis.ResponseError, match=r"OOM|memory"):
                redis_bulk.write(client, ((f"{run_name}:{i}", values(1)[0]) for i in range(40)), 60)
            assert client.ping()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"$1000\r\nabc", redis.ConnectionError),  # and then nothing more
        (b"", redis.ConnectionError),
        (b"$99999999999999999999\r\n", redis.InvalidResponse),
        (b"$-7\r\n", redis.InvalidResponse),
        (b":5\r\n", redis.InvalidResponse),
        (b"x" * 10_000, redis.InvalidResponse),
    ],
)
def test_a_server_that_answers_nonsense(answer, error):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                while b"GET" not in (asked := connection.recv(4096)):
                    if not asked:
                        return
                    connection.sendall(b"+OK\r\n" * asked.count(b"*"))
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        client = redis.Redis("127.0.0.1", port, protocol=2, socket_timeout=5)
        with pytest.raises(error):
            list(redis_bulk.read(client, ["key"], rooms(2000)))
        eventually(lambda: not thread.is_alive())
