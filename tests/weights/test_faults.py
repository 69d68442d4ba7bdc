"""Faults of the way between trainer and sidecar, caused for real. In every case requests go on being answered by a
whole version, and the reason is told."""

import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from selector_client import WeightPublisher
from selector_proto.v1 import selector_pb2 as pb
from support.model import TwoTower, as_published, plan, samples
from support.processes import eventually
from support.proxy import Proxy
from support.wire import raw

PIXELS, IDS = samples(30)
# Beside the model's own parameters: tensors that no graph takes, so that there is something to cut.
BALLAST = {f"ballast.{i}": np.random.default_rng(i).standard_normal((500, 1000)).astype(np.float32) for i in range(8)}


@pytest.fixture
def proxy(redis_url):
    proxies = []

    def start(**options):
        proxies.append(Proxy(urlsplit(redis_url).port, **options))
        return proxies[-1], f"redis://127.0.0.1:{proxies[-1].port}"

    yield start
    for one in proxies:
        one.close()


@pytest.fixture
def serve(sidecar, bundles, run_name):
    return lambda url: sidecar(bundles.flags | {"redis": url, "run": run_name, "weights_poll_seconds": 0.05})


def state(model):
    return {name: value.numpy() for name, value in model.state_dict().items()} | BALLAST


def answers_with(server, bundles, model) -> bool:
    picks = list(server.select(raw(PIXELS, IDS, seed=3)).indices)
    return picks == bundles.picks(PIXELS, IDS, plan(6, 6, seed=3), learner=as_published(model))


def test_a_slow_redis_delays_versions_and_nothing_else(proxy, serve, bundles, run_name):
    _, slow = proxy(bytes_per_second=20e6)
    server, model = serve(slow), TwoTower(41)
    stop, answered = threading.Event(), []

    def ask():
        while not stop.is_set():
            reply = server.select(raw(PIXELS, IDS, seed=3))
            answered.append((reply.weights.version, tuple(reply.indices)))

    with WeightPublisher(slow, run_name, dtype="fp32") as publisher:
        asking = threading.Thread(target=ask)
        asking.start()
        publisher.publish(1, state(model))
        assert publisher.flush(60)
        eventually(lambda: server.status().serving.version == 1, 60)
        stop.set()
        asking.join()
    assert answers_with(server, bundles, model)
    assert len({picks for _, picks in answered}) == len({version for version, _ in answered}), "no mixture"
    assert len(answered) > 20


@pytest.mark.parametrize("after", [1_000, 3_000_000, 15_900_000])
def test_cut_off_in_the_middle_of_a_publication(proxy, serve, redis_url, bundles, run_name, after):
    way, url = proxy()
    server, first, second = serve(redis_url), TwoTower(41), TwoTower(42)
    with WeightPublisher(url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, state(first))
        assert publisher.flush(20)
        eventually(lambda: server.status().serving.trainer_step == 1)
        way.cut(after)
        publisher.publish(2, state(second))
        eventually(lambda: publisher.failures and publisher.last_error)
        assert answers_with(server, bundles, first)
        assert server.status().state == pb.SYNC_STATE_CURRENT, "nothing of it was seen"
        way.mend()
        assert publisher.flush(30)
        eventually(lambda: server.status().serving.trainer_step == 2)
        assert answers_with(server, bundles, second)


@pytest.mark.parametrize("after", [200_000, 3_000_000, 15_000_000])
def test_cut_off_in_the_middle_of_a_fetch(proxy, serve, redis_url, bundles, run_name, after):
    way, url = proxy()
    server, first, second = serve(url), TwoTower(41), TwoTower(42)
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        publisher.publish(1, state(first))
        assert publisher.flush(20)
        eventually(lambda: server.status().serving.trainer_step == 1)
        way.cut(after)
        publisher.publish(2, state(second))
        assert publisher.flush(20)
        eventually(lambda: server.status().state == pb.SYNC_STATE_DISCONNECTED)
        assert server.status().last_error
        assert answers_with(server, bundles, first)
        way.mend()
        eventually(lambda: server.status().serving.trainer_step == 2, 30)
        assert answers_with(server, bundles, second)


def test_a_reader_that_needs_three_times_as_long_as_a_publication_gets_its_versions(
    proxy, sidecar, bundles, redis_url, run_name
):
    _, slow = proxy(bytes_per_second=10e6)
    server = sidecar(bundles.flags | {"redis": slow, "run": run_name, "weights_poll_seconds": 0.05})
    more = {f"more.{i}": np.zeros((3_500_000,), np.float32) for i in range(2)}  # 28 MB: about 3 s
    model = {name: value.numpy() for name, value in TwoTower(41).state_dict().items()} | more
    with WeightPublisher(redis_url, run_name, dtype="fp32") as publisher:
        started = time.monotonic()
        publisher.publish(1, model)
        eventually(lambda: server.status().swaps == 1, 60)
        interval = (time.monotonic() - started) / 3  # however long this machine takes
        for step in range(2, 21):
            started = time.monotonic()
            publisher.publish(step, model)
            assert publisher.flush()
            time.sleep(max(0.0, started + interval - time.monotonic()))
            if server.status().swaps >= 2:
                break
        assert server.status().swaps >= 2, server.status()


def test_a_sidecar_that_restarts_comes_up_with_the_newest_version(serve, bundles, redis_url, run_name):
    model = TwoTower(43)
    with WeightPublisher(redis_url, run_name) as publisher:
        for step, weights in enumerate((TwoTower(41), model), 1):
            publisher.publish(step, weights)
            assert publisher.flush()
        for _ in range(2):
            server = serve(redis_url)
            eventually(lambda server=server: server.status().serving.trainer_step == 2)
            assert answers_with(server, bundles, model)
            assert server.health("weights") == "SERVING"
            server.stop()
