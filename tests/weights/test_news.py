"""Announcements: hints that may fail in every way, and that nobody relies on."""

import threading
import time
from types import SimpleNamespace

import pytest
import redis
from selector_client import WeightPublisher
from selector_proto.weights.store import StoreRefused
from support.model import TwoTower
from support.processes import eventually
from support.redis_servers import join, redis_port, valkey_server
from support.runs import POLL

from selector_server.weights import fetcher
from selector_server.weights.fetcher import News


@pytest.fixture
def valkey():
    servers = []

    def start(port=None, **config):
        servers.append(valkey_server(port, config=config))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_news_end_the_pause_between_two_looks(sidecar, bundles, redis_url, run_name):
    flags = {"weights_poll_seconds": 30, "redis": redis_url, "run": run_name}
    server = sidecar(bundles.flags | flags)
    time.sleep(0.5)
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(1, TwoTower(5))
        assert publisher.flush()
        started = time.monotonic()
        eventually(lambda: server.status().serving.version == 1, 10)
        assert time.monotonic() - started < 5


def test_who_stops_listening_hangs_up(valkey, run_name):
    url = valkey().connection_url
    client, news = redis.Redis.from_url(url), News(url, run_name)
    news.wait(0.3, threading.Event())
    assert len(client.client_list()) == 2
    news.close()
    eventually(lambda: len(client.client_list()) == 1)


def test_who_may_not_listen_asks_once(monkeypatch):
    asked = []

    def listen(channel):
        asked.append(channel)
        raise StoreRefused("no permission")

    monkeypatch.setattr(fetcher, "open_store", lambda url, link: SimpleNamespace(listen=listen, close=lambda: None))
    news, stop = News("redis://localhost", "run"), threading.Event()
    started = time.monotonic()
    for _ in range(3):
        news.wait(0.05, stop)
    assert time.monotonic() - started >= 0.1, "it waits all the same, from the second time on"
    assert len(asked) == 1
    news.close()


def test_a_sidecar_that_is_there_before_its_cluster_is(sidecar, bundles, valkey, run_name):
    port = redis_port()
    url = f"redis+cluster://127.0.0.1:{port}"
    server = sidecar(bundles.flags | POLL | {"redis": url, "run": run_name})
    eventually(lambda: server.status().last_error)
    time.sleep(1)  # some looks, and some waits for news
    valkey(port, **{"cluster-enabled": "yes"})
    join([port])
    with WeightPublisher(url, run_name) as publisher:
        publisher.publish(1, TwoTower(5))
        assert publisher.flush(20)
        eventually(lambda: server.status().serving.version == 1, 20, lambda: server.text)


def test_a_password_that_is_missing_for_a_moment(sidecar, bundles, valkey, run_name, tmp_path):
    port, file = valkey().port, tmp_path / "password"
    admin, url = redis.Redis(port=port), f"redis://sidecar@127.0.0.1:{port}"
    admin.execute_command("ACL", "SETUSER", "sidecar", "on", ">secret", "~selector:*", "&*", "+@all")
    file.write_text("secret")
    server = sidecar(bundles.flags | POLL | {"redis": url, "run": run_name, "redis_password_file": file})
    file.rename(tmp_path / "away")
    admin.execute_command("CLIENT", "KILL", "USER", "sidecar")
    eventually(lambda: "password" in server.status().last_error)
    time.sleep(1)
    (tmp_path / "away").rename(file)
    with WeightPublisher(f"redis://127.0.0.1:{port}", run_name) as publisher:
        publisher.publish(1, TwoTower(5))
        assert publisher.flush(20)
        eventually(lambda: server.status().serving.version == 1, 20, lambda: server.text)


def test_waiting_beside_a_cluster_connects_to_nothing(valkey, run_name):
    port = valkey(**{"cluster-enabled": "yes"}).port
    join([port])
    client, news = redis.Redis(port=port), News(f"redis+cluster://127.0.0.1:{port}", run_name)

    def connections():
        return client.info("stats")["total_connections_received"]

    before = connections()
    for _ in range(10):
        news.wait(0.01, threading.Event())
    assert connections() == before
    news.close()
