"""Sidecars that are absent, killed, hung, lying and back again: uniform sub-batches meanwhile."""

import logging
import signal
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from selector_client import RemoteError, Selector, SelectorClientError, Unreachable
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.processes import eventually, free_port
from support.selectors import independent, losses
from support.wire import some_losses


def assert_uniform(selection, reason, picks=10, candidates=50):
    assert selection.fallback == reason
    assert len(set(selection.indices.tolist())) == len(selection.indices) == picks
    assert selection.indices.dtype == np.int64
    assert 0 <= selection.indices.min() <= selection.indices.max() < candidates
    assert selection.scores is selection.objective is selection.weights_version is None


def test_an_absent_server_costs_little_time_and_is_counted(caplog):
    with independent(f"127.0.0.1:{free_port()}", seed=1, timeout=60) as selector:
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            selections = [losses(selector) for _ in range(5)]
        assert time.monotonic() - started < 30, "not even half of one timeout"
    for selection in selections[:3]:
        assert_uniform(selection, "unavailable")
    for selection in selections[3:]:
        assert_uniform(selection, "breaker_open")
    assert len({tuple(s.indices.tolist()) for s in selections}) == 5, "each step draws anew"
    assert selector.statistics.fallbacks == {"unavailable": 3, "breaker_open": 2}
    assert (selector.statistics.requests, selector.statistics.picks) == (5, 50)
    assert len([r for r in caplog.records if "uniform sub-batches instead" in r.message]) == 1, "said once"


def test_uniform_picks_are_uniform_and_repeatable():
    address = f"127.0.0.1:{free_port()}"

    def picks(seed):
        with independent(address, seed=seed) as selector:
            return [losses(selector).indices.tolist() for _ in range(200)]

    assert picks(3)[:5] == picks(3)[:5]
    counts = np.bincount(np.concatenate(picks(4)), minlength=50)
    assert 15 < counts.min() <= counts.max() < 70, "40 expected of each, standard deviation 5.7"


def test_an_absent_server_raises_if_asked_to():
    with independent(f"127.0.0.1:{free_port()}", on_error="raise", timeout=2) as selector:
        with pytest.raises(Unreachable, match="UNAVAILABLE") as caught:
            losses(selector)
        assert caught.value.reason == "unavailable"
        with pytest.raises(Unreachable):
            selector.connect(timeout=0.3)
        with pytest.raises(SelectorClientError):
            selector.weights_status()
        assert selector.statistics.requests == 0


def test_connects_when_it_comes_up_falls_back_when_it_is_killed_and_finds_the_next_one(sidecar):
    port = free_port()
    with independent(f"127.0.0.1:{port}", timeout=5) as selector, ThreadPoolExecutor(1) as pool:
        connected = pool.submit(selector.connect, 60)
        time.sleep(0.2)
        first = sidecar(port=port)
        assert connected.result(60).device == "cpu"
        for _ in range(3):
            assert losses(selector).fallback == ""
        first.process.kill()
        first.process.wait()
        for attempt in range(5):
            started = time.monotonic()
            assert_uniform(losses(selector), "unavailable" if attempt < 3 else "breaker_open")
            assert time.monotonic() - started < 5, "its timeout"
            time.sleep(0.4)  # a training step, in which nothing drives a channel that tries to reconnect
        second = sidecar(port=port)
        assert len(second.select(some_losses()).indices) == 4
        eventually(lambda: losses(selector).fallback == "", 10)
    assert set(selector.statistics.fallbacks) == {"unavailable", "breaker_open"}


def test_a_channel_that_found_nobody_is_replaced_and_one_that_works_is_kept(plain_server, monkeypatch):
    """Left alone, a channel that failed needs up to 10 s to find a server that is back, but not every time."""
    opened, open_channel = [], grpc.insecure_channel

    def spy(address, **options):
        opened.append(address)
        return open_channel(address, **options)

    monkeypatch.setattr(grpc, "insecure_channel", spy)
    for address in (f"127.0.0.1:{free_port()}", plain_server.address):
        with independent(address) as selector:
            for _ in range(3):
                losses(selector)
    assert opened[-1:] == [plain_server.address]
    assert len(opened) >= 4
    assert set(opened[:-1]) == {opened[0]}


def test_hung_closed_and_killed_while_a_request_is_under_way(sidecar):
    server = sidecar()
    # Hung: a selection costs the timeout and no more; awake again, it is used again.
    with independent(server.address, timeout=0.5) as selector:
        assert losses(selector).fallback == ""
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        assert_uniform(losses(selector), "deadline_exceeded")
        assert 0.4 < time.monotonic() - started < 10, "a request without a timeout would wait for ever"
        server.signal(signal.SIGCONT)
        eventually(lambda: losses(selector).fallback == "", 10)
    assert server.health() == "SERVING"
    with independent(server.address, timeout=30) as selector, ThreadPoolExecutor(1) as pool:
        # Closed by another thread.
        losses(selector)
        server.signal(signal.SIGSTOP)
        pending = pool.submit(losses, selector)
        time.sleep(0.3)
        assert not pending.done()
        selector.close()
        assert_uniform(pending.result(5), "cancelled")
        # Killed.
        server.signal(signal.SIGCONT)
        eventually(lambda: losses(selector).fallback == "", 10)
        server.signal(signal.SIGSTOP)
        pending = pool.submit(losses, selector)
        time.sleep(0.3)
        assert not pending.done()
        server.process.kill()
        assert_uniform(pending.result(5), "unavailable")


class Liar(rpc.SelectorServiceServicer):
    """Answers what a correct server never answers."""

    def __init__(self, indices):
        self.indices = indices

    def Select(self, request_iterator, context):
        for _ in request_iterator:
            pass
        return pb.SelectResponse(indices=self.indices)


@pytest.mark.parametrize(
    "indices",
    [[], range(9), range(11), [0] * 10, [*range(9), 50], [*range(9), 2**32 - 1]],
    ids=["none", "fewer", "more", "repeated", "out of range", "far out of range"],
)
def test_an_answer_that_is_no_sub_batch_is_not_used(indices):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_SelectorServiceServicer_to_server(Liar(indices), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with independent(f"127.0.0.1:{port}") as selector:
            assert_uniform(losses(selector), "wrong_answer")
        with (
            independent(f"127.0.0.1:{port}", on_error="raise") as selector,
            pytest.raises(RemoteError, match="not 10 of 50"),
        ):
            losses(selector)
    finally:
        server.stop(0).wait()


def test_a_request_that_was_wrong_from_the_start_raises(plain_server):
    with Selector(plain_server.address, policy="jiont") as selector:
        with pytest.raises(RemoteError, match="policy is 'jiont'; must be one of independent, joint, uniform"):
            losses(selector)
        with pytest.raises(ValueError, match=r"policy is 'jiont'; .* knows independent, joint, uniform"):
            selector.connect()


def test_a_request_that_is_refused_later_falls_back_and_says_why(sidecar, caplog):
    """The sidecar was exchanged for one that takes less."""
    port = free_port()
    first = sidecar(port=port)
    with independent(first.address, timeout=20) as selector, caplog.at_level(logging.WARNING):
        assert losses(selector).fallback == ""
        first.process.kill()
        first.process.wait()
        sidecar({"max_super_batch": 20}, port=port)
        eventually(lambda: losses(selector).fallback == "resource_exhausted", 20)
    assert "at most 20 candidates" in caplog.text
