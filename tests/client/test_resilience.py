"""Retries, request ids, the breaker, the off switch, and the asyncio twin."""

import asyncio
import pickle
import signal
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from selector_client import AsyncSelector, RemoteError, Selector, Unreachable
from selector_client.selecting import session
from selector_client.selecting.breaker import Breaker
from selector_client.selecting.session import RETRIES_AT_ONCE
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.processes import eventually, free_port
from support.wire import some_losses

VALUES = np.random.default_rng(0).random((2, 50), dtype=np.float32)
SETTINGS = {"policy": "independent", "sub_batch_size": 10}


def losses(selector):
    return selector.select_losses(*VALUES)


class Shaky(rpc.SelectorServiceServicer):
    """Refuses the first requests with a status, then answers; notes the ids it saw."""

    def __init__(self, refusals, code):
        self.refusals, self.code, self.ids = refusals, code, []

    def Select(self, request_iterator, context):
        self.ids.append(next(request_iterator).selection.request_id)
        if len(self.ids) <= self.refusals:
            context.abort(self.code, "not now")
        return pb.SelectResponse(indices=range(10))


@pytest.fixture
def shaky():
    servers = []

    def start(refusals, code=grpc.StatusCode.UNAVAILABLE):
        server, service = grpc.server(futures.ThreadPoolExecutor(4)), Shaky(refusals, code)
        rpc.add_SelectorServiceServicer_to_server(service, server)
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return service, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_is_refused_for_now_is_sent_again_under_the_same_id(shaky, code):
    service, address = shaky(2, code)
    with Selector(address, **SETTINGS) as selector:
        assert losses(selector).fallback == ""
    assert len(service.ids) == 3
    assert len(set(service.ids)) == 1
    assert selector.statistics.retries == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION])
def test_what_would_be_refused_again_is_not_sent_again(shaky, code):
    service, address = shaky(1, code)
    with Selector(address, **SETTINGS) as selector:
        assert losses(selector).fallback == code.name.lower()
    assert len(service.ids) == 1


def test_every_request_has_an_id_of_its_own(shaky):
    service, address = shaky(0)
    with Selector(address, **SETTINGS) as selector:
        for _ in range(5):
            losses(selector)
    assert len(set(service.ids)) == 5


def test_retries_have_a_budget(shaky):
    service, address = shaky(10**6, grpc.StatusCode.RESOURCE_EXHAUSTED)
    with Selector(address, **SETTINGS) as selector:
        for _ in range(20):
            assert losses(selector).fallback == "resource_exhausted"
    assert selector.statistics.retries == RETRIES_AT_ONCE
    assert len(service.ids) == 20 + RETRIES_AT_ONCE


def test_the_timeout_bounds_a_selection_with_its_retries(shaky, monkeypatch):
    monkeypatch.setattr(session, "FIRST_RETRY_SECONDS", 60.0)
    service, address = shaky(10**6)
    with Selector(address, **SETTINGS) as selector:
        started = time.monotonic()
        assert selector.select_losses(*VALUES, timeout=10).fallback == "unavailable"
        assert time.monotonic() - started < 20, "a retry would come after 30 s or more"
    assert len(service.ids) == 1


# The server's side of a repeated request


def test_a_repeated_request_gets_the_same_reply(plain_server):
    request = some_losses(request_id="again-1")
    first, second = plain_server.select(request), plain_server.select(request)
    assert (first.repeated, second.repeated) == (False, True)
    assert (list(first.indices), first.seed) == (list(second.indices), second.seed), "the seed is drawn once"
    assert plain_server.refuse(some_losses(request_id="again-1", chunks=2)).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_failed_request_may_be_repeated(plain_server):
    bad = some_losses(request_id="again-2", policy="nobody's")
    assert plain_server.refuse(bad).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert plain_server.refuse(bad).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert plain_server.select(some_losses(request_id="again-2")).indices


def test_as_many_at_once_as_a_client_sends_are_run_once(plain_server):
    request, replies = some_losses(request_id="at once"), []
    before = plain_server.metrics()("selector_candidates_total")
    threads = [threading.Thread(target=lambda: replies.append(plain_server.select(request))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(reply.indices) for reply in replies}) == 1
    assert sum(reply.repeated for reply in replies) == 2
    assert plain_server.metrics()("selector_candidates_total") - before == 20


# The breaker


def test_a_breaker_opens_after_three_failures_and_closes_when_the_probe_says_so():
    healthy = threading.Event()
    breaker = Breaker(healthy.is_set)
    for _ in range(2):
        breaker.failed()
        assert breaker.allows()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert not breaker.allows()
    breaker.failed()  # of a request that was under way
    assert breaker.opened == 1
    healthy.set()
    eventually(breaker.allows, 5)
    breaker.failed()
    assert breaker.allows(), "it counts from one again"


def test_a_hung_sidecar_costs_three_timeouts_and_is_found_again(sidecar):
    server = sidecar()
    with Selector(server.address, timeout=0.4, **SETTINGS) as selector:
        assert losses(selector).fallback == ""
        server.signal(signal.SIGSTOP)
        reasons = [losses(selector).fallback for _ in range(3)]
        assert reasons == ["deadline_exceeded"] * 3
        started = time.monotonic()
        assert {losses(selector).fallback for _ in range(50)} == {"breaker_open"}
        assert time.monotonic() - started < 10, "no more waiting: 50 timeouts would be 20 s"
        server.signal(signal.SIGCONT)
        eventually(lambda: losses(selector).fallback == "", 15)


def test_a_selector_that_was_closed_is_used_again(plain_server):
    address = f"127.0.0.1:{free_port()}"
    selector = Selector(address, timeout=1, **SETTINGS)
    for _ in range(2):
        assert [losses(selector).fallback for _ in range(5)] == ["unavailable"] * 3 + ["breaker_open"] * 2
        selector.close()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "selector-probe"])


# Off, copies


def test_off_by_the_environment(plain_server, monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    with Selector("127.0.0.1:1", on_error="raise", **SETTINGS) as selector:
        assert losses(selector).fallback == "off"
    monkeypatch.setenv("SELECTOR_OFF", "0")
    with Selector(plain_server.address, **SETTINGS) as selector:
        assert losses(selector).fallback == ""


def test_a_pickled_copy_opens_a_connection_of_its_own(plain_server):
    with Selector(plain_server.address, seed=5, **SETTINGS) as selector:
        losses(selector)
        with pickle.loads(pickle.dumps(selector)) as copy:
            assert copy.settings == selector.settings
            assert losses(copy).indices.tolist() == losses(selector).indices.tolist(), "the same seed and count"


# asyncio


def test_the_asyncio_twin(plain_server):
    async def main():
        async with AsyncSelector(plain_server.address, seed=3, **SETTINGS) as selector:
            info = await selector.connect()
            assert info.device == "cpu"
            return [await selector.select_losses(*VALUES) for _ in range(3)], selector.statistics.requests

    selections, requests = asyncio.run(main())
    with Selector(plain_server.address, seed=3, **SETTINGS) as blocking:
        assert [s.indices.tolist() for s in selections] == [losses(blocking).indices.tolist() for _ in range(3)]
    assert requests == 3


def test_the_asyncio_twin_selects_at_once_and_falls_back(plain_server):
    async def many():
        async with AsyncSelector(plain_server.address, **SETTINGS) as selector:
            return await asyncio.gather(*(selector.select_losses(*VALUES) for _ in range(8)))

    async def nobody():
        async with AsyncSelector(f"127.0.0.1:{free_port()}", **SETTINGS) as selector:
            fallbacks = [(await selector.select_losses(*VALUES)).fallback for _ in range(4)]
            with pytest.raises(Unreachable):
                await selector.weights_status()
            return fallbacks

    async def mistaken():
        async with AsyncSelector(plain_server.address, policy="nobody's") as selector:
            await selector.select_losses(*VALUES)

    assert {selection.fallback for selection in asyncio.run(many())} == {""}
    assert asyncio.run(nobody()) == ["unavailable"] * 3 + ["breaker_open"]
    with pytest.raises(RemoteError, match="policy"):
        asyncio.run(mistaken())


def test_the_asyncio_twin_is_closed_or_cancelled_while_a_request_is_under_way(sidecar):
    server = sidecar()

    async def main():
        selector = AsyncSelector(server.address, timeout=30, **SETTINGS)
        assert (await selector.select_losses(*VALUES)).fallback == ""
        server.signal(signal.SIGSTOP)
        asked = [asyncio.create_task(selector.select_losses(*VALUES)) for _ in range(2)]
        await asyncio.sleep(0.3)
        asked[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked[0]
        await selector.close()
        closed = (await asyncio.wait_for(asked[1], 5)).fallback
        server.signal(signal.SIGCONT)
        again = (await selector.select_losses(*VALUES)).fallback
        await selector.close()
        return closed, again

    assert asyncio.run(main()) == ("cancelled", "")


def test_an_id_of_other_data_is_refused(plain_server):
    first, second = some_losses(request_id="data").with_crc(), some_losses(request_id="data")
    second.payload = bytes(len(second.payload))
    second.with_crc()
    assert plain_server.select(first).indices
    error = plain_server.refuse(second)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in error.details()
