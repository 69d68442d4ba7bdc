"""How a selector finds out that its sidecar is back, though its loop ends, is busy, or a proxy is in the way."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from selector_client import AsyncSelector
from selector_client.selecting import aio_link
from selector_client.selecting.breaker import THRESHOLD, Breaker
from support.foreign_http import ForeignServer
from support.processes import eventually
from support.selectors import LEARNER, REFERENCE, independent, losses


@pytest.fixture
def silent():
    """The address of something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def full():
    """The address of something that closes every connection at once, as a full sidecar does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def close():
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])
                    accepted[-1].shutdown(socket.SHUT_WR)

        threading.Thread(target=close, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


async def fail(selector):
    for _ in range(THRESHOLD):
        assert (await selector.select_losses(LEARNER, REFERENCE)).fallback
    assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == "breaker_open"


def test_a_loop_that_ends_during_a_probe_leaves_the_next_one_to_try(silent, caplog):
    selector = AsyncSelector(silent, policy="independent", timeout=0.1)

    async def step():
        await fail(selector)
        await asyncio.sleep(1)  # the probe has begun after half a second, and takes two

    asyncio.run(step())
    eventually(lambda: not selector._session.breaker.open, 5)
    assert "could not be asked" not in caplog.text


def test_a_loop_that_is_closed_just_before_a_probe(monkeypatch):
    selector, loop = AsyncSelector("127.0.0.1:1"), asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)
    selector._link._loop = loop
    assert selector._link.healthy()


def test_a_loop_that_runs_only_now_and_then(monkeypatch):
    """As in a synchronous trainer, whose steps take longer than a probe waits for the loop."""
    monkeypatch.setattr(aio_link, "LOOP_SECONDS", 0.2)
    selector, loop = AsyncSelector("127.0.0.1:1", policy="independent", timeout=1.0), asyncio.new_event_loop()
    try:
        loop.run_until_complete(fail(selector))
        eventually(lambda: not selector._session.breaker.open, 5)
        loop.run_until_complete(selector.close())
    finally:
        loop.close()


def test_a_probe_that_raises_is_no_answer_and_the_next_one_may_be(caplog):
    found = iter([OSError("no such thing"), OSError("again"), True])

    def probe():
        if isinstance(answer := next(found), OSError):
            raise answer
        return answer

    breaker = Breaker(probe)
    for _ in range(THRESHOLD):
        breaker.failed()
    assert not breaker.allows()
    eventually(breaker.allows, 10)
    said = [one for one in caplog.records if "could not be asked" in one.message]
    assert len(said) == 1
    assert "no such thing" in str(said[0].exc_info[1])


def test_a_failure_does_not_wait_for_the_loops_threads(full, caplog):
    """They may all be busy for long, with what the trainer gave them."""
    free = threading.Event()

    async def main(address):
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, 30)
        began = time.monotonic()
        async with AsyncSelector(address, policy="independent", timeout=1.0) as selector:
            assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == "unavailable"
        took = time.monotonic() - began
        free.set()
        assert await busy
        return took

    assert asyncio.run(main(full)) < 10
    assert "as many connections as it takes" in caplog.text


def test_a_look_at_the_address_is_bounded(full, monkeypatch, caplog):
    """A name server may take long to answer."""
    free = threading.Event()
    monkeypatch.setattr(aio_link, "closes_at_once", lambda address: free.wait(30))

    async def main():
        async with AsyncSelector(full, policy="independent", timeout=1.0) as selector:
            assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == "unavailable"

    began = time.monotonic()
    try:
        asyncio.run(main())
        assert time.monotonic() - began < 15
    finally:
        free.set()
    assert "it may want TLS" in caplog.text


@pytest.fixture(params=["UNIMPLEMENTED", "404"])
def unasked(request):
    """The address of something that answers no health checks."""
    if request.param == "404":
        with ForeignServer(404) as server:
            yield server.address
        return
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize("loop", [False, True])
def test_a_health_check_that_does_not_reach_the_sidecar_is_told_once(unasked, loop, caplog):
    async def main():
        async with AsyncSelector(unasked) as selector:
            selector._link.take()
            for _ in range(2):
                assert not await asyncio.to_thread(selector._link.healthy)

    if loop:
        asyncio.run(main())
    else:
        with independent(unasked) as selector:
            assert [selector._link.healthy() for _ in range(2)] == [False, False]
    said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(said) == 1
    assert "/grpc.health.v1.Health/Check" in said[0]


def test_a_probe_opens_no_connection_after_the_close(plain_server):
    with independent(plain_server.address) as selector:
        assert losses(selector).fallback == ""
        assert selector._link.healthy()
        selector.close()
        assert not selector._link.healthy(), "as one that began just before"
        assert selector._link._current is None
        assert losses(selector).fallback == ""
        assert selector._link.healthy()

    async def main():
        selector = AsyncSelector(plain_server.address, policy="independent")
        assert (await selector.select_losses(LEARNER, REFERENCE)).fallback == ""
        assert await asyncio.to_thread(selector._link.healthy)
        await selector.close()
        assert not await asyncio.to_thread(selector._link.healthy)
        assert selector._link._current is None

    asyncio.run(main())
