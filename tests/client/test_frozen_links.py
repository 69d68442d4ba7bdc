"""Connections through which nothing passes any more, while new ones work: proxies and firewalls make them."""

import asyncio
import os
import pickle
import signal
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from selector_client import AsyncSelector, SelectingLoader, Selector
from selector_client.selecting import breaker as breakers
from selector_client.selecting import link as links
from selector_client.selecting import session as sessions
from selector_client.selecting import transport
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.model import samples
from support.processes import eventually
from support.proxy import Proxy
from support.selectors import LEARNER, REFERENCE, independent, losses

TIMEOUT = 0.3


@pytest.fixture
def through():
    """through(server) is a proxy before it."""
    proxies = []

    def start(server):
        proxies.append(Proxy(server.port))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def at(proxy) -> str:
    return f"127.0.0.1:{proxy.port}"


def test_a_frozen_connection_is_given_up_for_a_new_one(plain_server, through):
    proxy = through(plain_server)
    with independent(at(proxy), timeout=TIMEOUT) as selector:
        assert losses(selector).fallback == ""
        proxy.freeze()
        frozen = time.monotonic()
        assert losses(selector).fallback == "deadline_exceeded"
        eventually(lambda: losses(selector).fallback == "", 10)
        assert time.monotonic() - frozen < 8, "two timeouts, at most 2 s of jitter, and a pause of the probe"
        assert selector.statistics.renewals == 1
        assert {losses(selector).fallback for _ in range(20)} == {""}
    assert proxy.accepted == 2


def test_asyncio_gives_it_up_too(plain_server, through):
    proxy = through(plain_server)

    async def main():
        async with AsyncSelector(at(proxy), policy="independent", timeout=TIMEOUT) as selector:
            assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == ""
            proxy.freeze()
            frozen = time.monotonic()
            while (await selector.select_losses(LEARNER, REFERENCE)).fallback:
                assert time.monotonic() - frozen < 8
                await asyncio.sleep(0.02)
            assert selector.statistics.renewals == 1
            assert "deadline_exceeded" in selector.statistics.fallbacks

    asyncio.run(main())


def test_a_loader_loses_a_few_steps(server, through):
    proxy = through(server)
    pixels, tokens = samples(40)
    batches = ({"images": pixels, "texts": tokens} for _ in range(400))
    with Selector(at(proxy), filter_ratio=0.8) as selector:
        loader = SelectingLoader(batches, selector, deadline=1.0)
        for step, _ in enumerate(loader):
            time.sleep(0.02)
            if step == 40:
                assert not loader.progress.fallbacks
                proxy.freeze()
                frozen = time.monotonic()
            if step > 40 and selector.statistics.renewals and not loader.last.fallback:
                break
        assert time.monotonic() - frozen < 12
        lost = loader.progress.fallbacks.total()
        assert selector.statistics.renewals == 1
        assert 2 <= lost <= 2 + 5 / 0.02, "two timeouts, and what a probe's pauses cost"
        for _ in range(10):
            next(iter(loader))
        assert loader.progress.fallbacks.total() == lost


def test_the_probe_goes_through_the_connection_of_the_calls(plain_server, through, monkeypatch):
    monkeypatch.setattr(links, "SILENT_DEADLINES", 1000)  # it is never given up
    monkeypatch.setattr(links, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(breakers, "LAST_PAUSE_SECONDS", 0.2)
    proxy = through(plain_server)
    with independent(at(proxy), timeout=TIMEOUT) as selector:
        losses(selector)
        proxy.freeze()
        assert [losses(selector).fallback for _ in range(3)] == ["deadline_exceeded"] * 3
        time.sleep(1.5)
        assert losses(selector).fallback == "breaker_open", "a new one would be answered, but calls have this"
        monkeypatch.setattr(links, "SILENT_DEADLINES", 2)
        eventually(lambda: losses(selector).fallback == "", 10)
    assert proxy.accepted == 2


class Slow(rpc.SelectorServiceServicer):
    """Answers after `seconds`; notes the peers of its calls."""

    def __init__(self, seconds, keepalive=0.0):
        self.seconds, self.keepalive, self.peers, self.ids = seconds, keepalive, [], []

    def GetServerInfo(self, request, context):
        return pb.GetServerInfoResponse(policies=["independent"], limits=pb.Limits(keepalive_seconds=self.keepalive))

    def Select(self, request_iterator, context):
        self.ids.append(next(request_iterator).selection.request_id)
        self.peers.append(context.peer())
        time.sleep(self.seconds if len(self.ids) == 1 or self.seconds < 1 else 0)
        return pb.SelectResponse(indices=range(10))


@pytest.fixture
def slow():
    started = []

    def start(*arguments):
        server, service = grpc.server(futures.ThreadPoolExecutor(32)), Slow(*arguments)
        rpc.add_SelectorServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        started.append(server)
        return service, f"127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop(0).wait()


def test_a_server_that_is_only_slow_sees_few_new_connections(slow, monkeypatch):
    monkeypatch.setattr(breakers, "THRESHOLD", 10**6)
    monkeypatch.setattr(links, "RENEWAL_SECONDS", 1.0)
    monkeypatch.setattr(links, "JITTER_SECONDS", 0.1)
    service, address = slow(0.5)
    began = time.monotonic()
    with Selector(address, policy="independent", sub_batch_size=10, timeout=0.05) as selector:
        while time.monotonic() - began < 3.2:
            assert losses(selector).fallback == "deadline_exceeded"
        took = time.monotonic() - began
        assert 2 <= selector.statistics.renewals <= took / 1.0 + 1
    assert len(set(service.peers)) <= selector.statistics.renewals + 1
    assert len(service.peers) > 4 * len(set(service.peers))


def test_at_most_one_renewal_in_five_seconds_and_not_all_trainers_at_once():
    assert links.RENEWAL_SECONDS == 5
    assert links.JITTER_SECONDS >= 1


def test_calls_that_are_under_way_end_in_the_old_connection(slow, monkeypatch):
    monkeypatch.setattr(links, "JITTER_SECONDS", 0.0)
    service, address = slow(2.0)
    settings = {"policy": "independent", "sub_batch_size": 10, "seed": 1}

    def silence(selector):
        old = selector._link._current
        old.silent = links.SILENT_DEADLINES
        return old

    with Selector(address, **settings) as selector, ThreadPoolExecutor(1) as pool:
        long = pool.submit(losses, selector)
        eventually(lambda: service.ids)
        silence(selector)
        assert losses(selector).fallback == "", "through a new connection"
        assert not long.done()
        assert long.result(20).fallback == ""
        assert selector.statistics.renewals == 1
    service.ids.clear()

    async def main():
        async with AsyncSelector(address, **settings) as selector:
            long = asyncio.create_task(selector.select_losses(LEARNER, REFERENCE))
            await asyncio.to_thread(eventually, lambda: service.ids)
            silence(selector)
            assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == ""
            assert not long.done()
            assert (await asyncio.wait_for(long, 20)).fallback == ""
            assert selector.statistics.renewals == 1

    asyncio.run(main())
    assert len(set(service.peers)) == 4


def test_closing_ends_calls_in_connections_that_were_given_up_too(slow):
    service, address = slow(4.0)
    settings = {"policy": "independent", "sub_batch_size": 10}
    with Selector(address, **settings) as selector, ThreadPoolExecutor(1) as pool:
        long = pool.submit(losses, selector)
        eventually(lambda: service.ids)
        selector._link._current.silent = links.SILENT_DEADLINES
        assert losses(selector).fallback == "", "through a new connection"
        selector.close()
        assert long.result(2).fallback == "cancelled"
    service.ids.clear()

    async def main():
        selector = AsyncSelector(address, **settings)
        long = asyncio.create_task(selector.select_losses(LEARNER, REFERENCE))
        await asyncio.to_thread(eventually, lambda: service.ids)
        selector._link._current.silent = links.SILENT_DEADLINES
        assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == ""
        await selector.close()
        assert (await asyncio.wait_for(long, 2)).fallback == "cancelled"

    asyncio.run(main())


def test_a_selection_that_is_under_way_opens_no_connection_after_the_close(monkeypatch):
    """It would wait there, though nobody waits for it."""
    monkeypatch.setattr(sessions, "FIRST_RETRY_SECONDS", 0.5)
    with independent("127.0.0.1:1", timeout=30) as selector, ThreadPoolExecutor(1) as pool:
        between = pool.submit(losses, selector)
        eventually(lambda: selector.statistics.retries)
        selector.close()
        assert between.result(20).fallback == "closed"
        assert selector._link._current is None
        assert losses(selector).fallback == "unavailable", "a later one opens one"

    async def main():
        selector = AsyncSelector("127.0.0.1:1", policy="independent", timeout=30)
        between = asyncio.create_task(selector.select_losses(LEARNER, REFERENCE))
        await asyncio.to_thread(eventually, lambda: selector.statistics.retries)
        await selector.close()
        assert (await between).fallback == "closed"

    asyncio.run(main())


def test_a_sidecars_own_deadline_is_an_answer(slow):
    class TooLate(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.DEADLINE_EXCEEDED

        def details(self):
            return "too late"

        def trailing_metadata(self):
            return (("grpc-status-details-bin", b""),)

    with independent("127.0.0.1:1") as selector:
        link = selector._link
        connection = link.take()
        for _ in range(10):
            link.failed(connection, TooLate())
        assert link.take() is connection


def test_keepalive_finds_it_within_one_selection(sidecar, through):
    server = sidecar({"keepalive_seconds": 1})
    proxy = through(server)
    with independent(at(proxy), timeout=30) as selector:
        assert selector.connect(20).limits.keepalive_seconds == 1
        assert losses(selector).fallback == ""
        proxy.freeze()
        began = time.monotonic()
        assert losses(selector).fallback == "", "sent again, through a new connection"
        assert time.monotonic() - began < 15, "one ping and the wait for its answer"
        assert selector.statistics.retries == 1


def test_keepalive_finds_it_between_selections(sidecar, through):
    server = sidecar({"keepalive_seconds": 1})
    proxy = through(server)
    with independent(at(proxy), timeout=30) as selector:
        selector.connect(20)
        losses(selector)
        proxy.freeze()
        time.sleep(4)
        assert losses(selector).fallback == ""
        assert selector.statistics.retries == 0, "there was a new connection already"


def test_keepalive_between_selections_costs_no_connection(sidecar, through):
    server = sidecar({"keepalive_seconds": 1})
    proxy = through(server)
    with independent(at(proxy), timeout=30) as selector:
        selector.connect(20)
        losses(selector)
        accepted = proxy.accepted
        time.sleep(3.5)
        assert losses(selector).fallback == ""
        assert proxy.accepted == accepted == 2
        assert selector.statistics.retries == 0


def test_a_sidecar_that_wants_no_pings_gets_none(slow):
    """One that says so is version 0.1; one that ends the connection has taken the place of another."""
    service, address = slow(8.0, 1.0)
    with Selector(address, policy="independent", sub_batch_size=10, timeout=30) as selector:
        selector.connect(10)
        assert losses(selector).fallback == ""
        assert selector.statistics.retries == 1, "the first call ended with too_many_pings"
        assert selector._link._keepalive == 0
        assert len(set(service.ids)) == 1, "the same request"
    service.ids.clear()
    service.keepalive, service.seconds = 0.0, 2.0
    with Selector(address, policy="independent", sub_batch_size=10, timeout=30) as selector:
        selector.connect(10)
        assert losses(selector).fallback == ""
        assert selector.statistics.retries == 0


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -1.0, 1e-6, 1e9])
def test_an_interval_that_cannot_be_is_none(said):
    with independent("127.0.0.1:1") as selector:
        selector._session.learn(pb.GetServerInfoResponse(limits=pb.Limits(keepalive_seconds=said)))
        assert selector._link.take().keepalive == 0


def test_shared_memory_and_request_ids_outlive_a_renewal(sidecar, through, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "JITTER_SECONDS", 0.0)
    monkeypatch.setattr(transport, "MIN_BYTES", 1)
    server = sidecar({"shared_memory_dir": tmp_path / "shm"})
    proxy = through(server)
    with independent(at(proxy), timeout=2.0, shared_memory=True) as selector:
        assert [losses(selector).fallback for _ in range(2)] == ["", ""], "the second over one with keepalive"
        ring = selector._transport._ring
        proxy.freeze()
        fallbacks = [losses(selector).fallback for _ in range(4)]
        assert fallbacks == ["deadline_exceeded"] * 2 + [""] * 2
        assert selector._transport._ring is ring
        assert server.metrics()("selector_shm_payloads_total") == 4
        with pickle.loads(pickle.dumps(selector)) as copy:
            assert losses(copy).fallback == ""


def test_a_file_that_cannot_be_read_costs_no_connection_that_stands(monkeypatch, plain_server):
    with independent(plain_server.address) as selector:
        losses(selector)
        link = selector._link
        old = link._current
        old.silent = links.SILENT_DEADLINES

        def unreadable(keepalive):
            raise links.Untrusted("untrusted", "ca_file is just being replaced")

        monkeypatch.setattr(link, "_open", unreadable)
        assert losses(selector).fallback == ""
        assert link._current is old


def test_a_selector_of_one_loop_serves_the_next_one(plain_server, through):
    proxy = through(plain_server)
    selector = AsyncSelector(at(proxy), policy="independent", timeout=TIMEOUT)

    async def select(times=1):
        return [(await selector.select_losses(LEARNER, REFERENCE)).fallback for _ in range(times)]

    assert asyncio.run(select()) == [""]
    assert asyncio.run(select()) == [""], "the first loop's channel cannot be awaited"
    proxy.freeze()

    assert asyncio.run(select()) == [""], "frozen is the second loop's connection, which is closed"

    async def freeze():
        found = await select()
        proxy.freeze()
        return found + await select(4)

    found = asyncio.run(freeze())
    assert found == ["", *["deadline_exceeded"] * 3, "breaker_open"]
    eventually(lambda: asyncio.run(select()) == [""], 15)
    asyncio.run(selector.close())
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "selector-probe"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent():
    """The breaker's probe may hold it, in a thread that the child does not have."""
    with independent("127.0.0.1:1") as selector, selector._link._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if losses(selector).fallback == "unavailable" else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_values_are_as_they_were(plain_server):
    """The picks do not depend on the connection."""
    with independent(plain_server.address, seed=4) as one, independent(plain_server.address, seed=4) as other:
        first = [losses(one).indices for _ in range(2)]
        losses(other)
        other._link._current.silent = links.SILENT_DEADLINES
        assert np.array_equal(first[1], losses(other).indices)
