"""How a sidecar behaves when there is too much, too late, too slow or too long: real processes, real clients."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from selector_client import AsyncSelector, Selector
from selector_proto.v1 import selector_pb2 as pb
from support.model import samples
from support.plugins import with_policies
from support.processes import SlowClient, eventually
from support.wire import embeddings, error_info, raw, retry_seconds, some_embeddings, some_losses

# Long for whoever waits, and ended soon by whoever looks after each round.
ROUNDS, CANDIDATES = 1000, 60_000


@pytest.fixture(scope="module")
def narrow(start_sidecars, bundles):
    """A sidecar with both models that takes few requests, and knows a slow client by the second."""
    limits = {"max_pending_requests": 3, "receive_seconds": 2, "receive_min_bytes_per_second": 1 << 20}
    with start_sidecars() as start:
        yield start(bundles.flags | limits)


def long_draw(**fields):
    return embeddings(*some_embeddings(CANDIDATES), sub_batch_size=20_000, chunks=ROUNDS, seed=1, **fields)


def rejected(server, reason):
    return server.metrics()("selector_rejected_total", reason=reason)


def cancelled(server, where):
    return server.metrics()("selector_cancelled_total", where=where)


def begin(server, request, timeout=60):
    return server.stub.Select.future(iter(request.messages()), timeout=timeout)


# Refused


def test_a_refused_request_is_told_when_to_come_again_and_its_payload_is_not_read(narrow):
    before = rejected(narrow, "pending")
    slow = [SlowClient(narrow) for _ in range(3)]
    narrow.wait_pending(3)
    started = time.monotonic()
    header = some_losses().messages()[0].selection
    header.payload_bytes = 1 << 30  # of which nothing is ever sent
    answered = threading.Event()

    def only_a_header():
        yield pb.SelectRequest(selection=header)
        answered.wait(20)

    with pytest.raises(grpc.RpcError) as caught:
        narrow.stub.Select(only_a_header(), timeout=20)
    answered.set()
    assert time.monotonic() - started < 10, "it does not wait for the payload"
    assert error_info(caught.value)["reason"] == "OVERLOADED"
    assert 0.02 <= retry_seconds(caught.value) <= 30
    assert rejected(narrow, "pending") == before + 1
    for one in slow:
        one.leave()
    narrow.wait_pending(0)


def test_what_is_too_large_is_not_told_to_come_again(narrow):
    before = rejected(narrow, "too_large")
    request = some_losses()
    request.selection.payload_bytes = 1 << 40
    error = narrow.refuse(request)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_seconds(error) is None
    assert rejected(narrow, "too_large") == before + 1


def test_a_header_has_a_size(narrow):
    request = some_losses()
    request.selection.losses.learner.shape.extend([1] * 300_000)
    error = narrow.refuse(request)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "bytes; at most 262144" in error.details()


@pytest.mark.parametrize("kind", [Selector, AsyncSelector])
def test_the_client_comes_again_when_told_and_within_its_deadline(narrow, kind):
    def select(timeout):
        values = np.random.default_rng(0).random((2, 50), dtype=np.float32)
        if kind is Selector:
            with Selector(narrow.address, policy="independent", timeout=timeout) as selector:
                return selector.select_losses(*values).fallback, selector.statistics.retries

        async def main():
            async with AsyncSelector(narrow.address, policy="independent", timeout=timeout) as selector:
                return (await selector.select_losses(*values)).fallback, selector.statistics.retries

        return asyncio.run(main())

    slow = [SlowClient(narrow) for _ in range(3)]
    narrow.wait_pending(3)
    started = time.monotonic()
    fallback, retries = select(0.5)
    assert time.monotonic() - started < 5, "its deadline is 0.5 s"
    assert fallback == "resource_exhausted"
    assert retries <= 2
    threading.Timer(0.05, lambda: [one.finish() for one in slow]).start()
    fallback, retries = select(20)
    assert (fallback, 1 <= retries <= 2) == ("", True)
    narrow.wait_pending(0)


# Slow


def test_a_request_that_trickles_loses_its_permit(narrow):
    """Each message comes in time, all of them do not."""
    before, started = rejected(narrow, "late"), time.monotonic()

    def trickle():
        first = some_losses().messages()[0]
        yield pb.SelectRequest(selection=first.selection)
        while time.monotonic() - started < 20:
            time.sleep(0.2)
            yield pb.SelectRequest()

    with pytest.raises(grpc.RpcError) as caught:
        narrow.stub.Select(trickle(), timeout=30)
    assert 1.8 < time.monotonic() - started < 10
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "stream is slow; all of it must come within 2.00015 s, at 1048576 bytes a second" in caught.value.details()
    assert rejected(narrow, "late") == before + 1
    narrow.wait_pending(0)


# Gone


def test_a_client_that_leaves_while_it_sends(narrow):
    before = cancelled(narrow, "receive")
    slow = SlowClient(narrow)
    narrow.wait_pending(1)
    slow.leave()
    eventually(lambda: cancelled(narrow, "receive") == before + 1)
    narrow.wait_pending(0)


def test_a_draw_ends_when_its_client_leaves(narrow):
    """It would take minutes."""
    before = cancelled(narrow, "sample")
    call = begin(narrow, long_draw(), 300)
    narrow.wait_pending(1)
    time.sleep(3)
    assert not call.done()
    call.cancel()
    eventually(lambda: cancelled(narrow, "sample") == before + 1)
    started = time.monotonic()
    assert len(narrow.select(some_losses()).indices) == 4, "the worker is free for others"
    assert time.monotonic() - started < 10
    assert narrow.health() == "SERVING"


# Memory


@pytest.fixture
def cgroup():
    """A cgroup that may use 700 MiB: root only, and where the memory controller is of version 1 or 2 and writable."""
    name = f"selector-test-{os.getpid()}"
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = root / name
        try:
            folder.mkdir()
            (folder / limit).write_text(str(700 << 20))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        yield folder
        eventually(lambda folder=folder: not (folder / "cgroup.procs").read_text())
        folder.rmdir()
        return
    pytest.skip("NOT TESTED: no cgroup with a memory limit can be made here (needs root and a writable controller)")


def test_requests_are_refused_before_the_kernel_kills(cgroup, sidecar):
    server = sidecar({"memory_guard_share": 0.8}, new=True, wait=False)
    (cgroup / "cgroup.procs").write_text(str(server.process.pid))
    server.wait_healthy()
    assert f"of 700 MiB used (cgroup {cgroup}), refusing above 560 MiB" in server.text
    small = server.select(some_losses())
    assert len(small.indices) == 4
    header = some_losses().messages()[0].selection
    header.payload_bytes = 500 << 20
    error = server.refuse([pb.SelectRequest(selection=header)])
    assert error_info(error)["reason"] == "OVERLOADED"
    assert "the server's memory has room for" in error.details()
    assert retry_seconds(error) > 0
    assert rejected(server, "memory") == 1
    header.payload_bytes = 600 << 20
    assert retry_seconds(server.refuse([pb.SelectRequest(selection=header)])) is None, "never"
    assert "short of memory" in server.text
    assert len(server.select(some_losses()).indices) == 4
    server.stop()


# The worker's end, and the process's

POLICIES = """
import ctypes
import sys
from selector_server.sampling import Needs, Policy

class Die(Policy):
    name, needs = "die", Needs.SCALARS
    def pick(self, scores, plan):
        sys.exit("the thread ends")

class Hang(Die):
    name = "hang"
    def pick(self, scores, plan):
        ctypes.CDLL(None).sleep(600)
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    return with_policies(tmp_path_factory.mktemp("policies"), POLICIES, die="Die", hang="Hang")


def test_a_dead_worker_fails_all_that_wait_and_ends_the_process(sidecar, policies):
    server = sidecar(env=policies, new=True)
    calls = [begin(server, some_losses(policy="die")), *(begin(server, some_losses()) for _ in range(3))]
    codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert calls[0].code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(15) == 1
    assert "the worker is dead: the process ends, status 1" in server.text


def test_a_stuck_worker_turns_unhealthy_and_then_ends_the_process(sidecar, policies):
    flags = {"stall_seconds": 0.5, "stall_exit_seconds": 3, "drain_seconds": 300, "log_format": "json"}
    server = sidecar(flags, env=policies, new=True)
    stuck = begin(server, some_losses(policy="hang"), 300)
    eventually(lambda: server.health() == "NOT_SERVING", 10)
    assert server.metrics()("selector_worker_up") == 0
    assert server.process.wait(25) == 1
    assert stuck.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert '"the worker is stuck for ' in server.text
    assert "foreign.py" in server.text, "where it is stuck"


def test_a_signal_ends_a_process_whose_worker_is_stuck(sidecar, policies):
    server = sidecar({"drain_seconds": 0.5}, env=policies, new=True)
    stuck = begin(server, some_losses(policy="hang"), 300)
    server.wait_pending(1)
    server.signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.text)
    server.signal(signal.SIGTERM)
    server.process.wait(30)  # the worker is stuck for ever
    assert stuck.code() is not grpc.StatusCode.OK


def test_a_killed_sidecar_starts_again_with_all_that_it_left(start_sidecars, bundles, redis_url, tmp_path):
    """kill -9: socket files, shared memory, the cache's locks."""
    flags = bundles.flags | {
        "cache": tmp_path / "cache",
        "cache_bytes": 1 << 24,
        "shared_memory_dir": tmp_path / "shm",
        "weights_share": tmp_path / "weights",
        "redis": redis_url,
        "run": "killed",
        "admin_listen": f"unix:{tmp_path}/admin.sock",
    }
    pixels, ids = samples(40)
    names = [f"s{i}".encode() for i in range(40)]

    def select(server):
        request = raw(pixels, ids)
        request.selection.sample_ids.strings.CopyFrom(request.pack(names))
        return server.select(request)

    with start_sidecars() as start:
        first = start(flags)
        assert select(first).cached_references == 0
        eventually(lambda: select(first).cached_references == 40)
        calls = [begin(first, some_losses(), 300), begin(first, long_draw(), 300)]
        eventually(lambda: first.pending() == 1)
        assert (tmp_path / "admin.sock").exists()
        first.process.kill()
        first.process.wait(10)
        first.hang_up()
        del calls
        second = start(flags, port=first.port)
        reply = select(second)
        assert reply.cached_references == 40
        assert len(reply.indices) == 8
        with grpc.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel:
            grpc.channel_ready_future(channel).result(10)
