"""The worker's thread, where a real server would need minutes or luck: late, abandoned, stuck and failing tasks."""

import asyncio
import sys
import threading
import time

import pytest
from support.processes import eventually
from support.spans import spans_of

from selector_server.engine.admission import Admission
from selector_server.engine.request import Request, in_thread
from selector_server.engine.worker import Worker
from selector_server.errors import NotPossible, Overloaded, TooLate, Unavailable
from selector_server.telemetry.metrics import Metrics


class Device:
    """Runs named work as the scorer does; "hold" runs until `go` is set, "fail" and "refuse" raise."""

    def __init__(self):
        self.go, self.running, self.ran = threading.Event(), threading.Event(), []

    def work(self, name):
        self.ran.append(name)
        match name:
            case "hold":
                self.running.set()
                self.go.wait(20)
            case "fail":
                raise ZeroDivisionError
            case "refuse":
                raise NotPossible("samples", "x", "y")
        return name


def named(worker, device, name, request=None):
    """The named work on the worker's thread."""
    return worker.run(lambda: device.work(name), request or Request())


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def worker(device):
    worker = Worker(stall_seconds=0.3)
    worker.start()
    yield worker
    device.go.set()
    worker.stop(10)
    assert not worker.alive


async def held(worker, device):
    """A task that occupies the worker."""
    task = asyncio.create_task(named(worker, device, "hold"))
    await asyncio.to_thread(device.running.wait, 10)
    return task


def test_tasks_run_in_order_and_their_wait_is_measured(worker, device):
    async def main():
        first = await held(worker, device)
        others = [asyncio.create_task(named(worker, device, name, requests[name])) for name in "ab"]
        await asyncio.sleep(0.1)
        device.go.set()
        return await asyncio.gather(first, *others)

    requests = {"a": Request(10), "b": Request(10)}
    assert asyncio.run(main()) == device.ran == ["hold", "a", "b"]
    assert all(0.1 <= request.stages.queue < 5 for request in requests.values())


def test_the_wait_in_the_queue_is_in_the_trace(worker, device):
    assert spans_of(named(worker, device, "a")) == ["queue"]


def test_a_task_whose_deadline_passed_in_the_queue_is_not_run(worker, device):
    async def main():
        first = await held(worker, device)
        late = asyncio.create_task(named(worker, device, "late", Request(0.05)))
        await asyncio.sleep(0.1)
        device.go.set()
        with pytest.raises(TooLate, match="s in the queue; it passed before the request was run"):
            await late
        await first

    asyncio.run(main())
    assert device.ran == ["hold"]


def test_a_task_whose_client_left_is_not_run(worker, device):
    async def main():
        first = await held(worker, device)
        abandoned = asyncio.create_task(named(worker, device, "abandoned"))
        await asyncio.sleep(0.05)
        abandoned.cancel()
        await asyncio.sleep(0.05)
        device.go.set()
        await first
        return await named(worker, device, "next")

    assert asyncio.run(main()) == "next"
    assert device.ran == ["hold", "next"]


def test_failures_reach_their_request_and_leave_the_worker_alive(worker, device, caplog):
    async def main():
        with pytest.raises(ZeroDivisionError):
            await named(worker, device, "fail")
        with pytest.raises(NotPossible):
            await named(worker, device, "refuse")
        return await named(worker, device, "fine")

    assert asyncio.run(main()) == "fine"
    assert worker.healthy
    (record,) = caplog.records  # A refusal is nothing that the server's log must explain.
    assert (record.getMessage(), record.exc_info[0]) == ("unexpected failure", ZeroDivisionError)


def test_a_stuck_task_makes_the_worker_unhealthy_until_it_ends(worker, device):
    async def main():
        assert worker.healthy
        stuck = await held(worker, device)
        assert worker.healthy, "not yet stuck for long"
        await asyncio.sleep(0.35)
        assert not worker.healthy
        assert worker.alive
        device.go.set()
        await stuck
        deadline = time.monotonic() + 5
        while not worker.healthy:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_stopped_worker_finishes_its_queue_and_takes_nothing_more(device):
    worker = Worker(stall_seconds=10)
    assert not worker.healthy, "not before its thread runs"
    worker.start()

    async def main():
        first = await held(worker, device)
        queued = asyncio.create_task(named(worker, device, "queued"))
        await asyncio.sleep(0.05)
        device.go.set()
        await asyncio.to_thread(worker.stop, 10)
        with pytest.raises(Unavailable, match="worker is stopped; the server is going down"):
            await named(worker, device, "too late")
        return await first, await queued

    assert asyncio.run(main()) == ("hold", "queued")
    assert not worker.alive
    assert not worker.healthy


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_ends_the_thread_is_refused_and_so_is_what_waits(worker, device):
    async def main():
        first = await held(worker, device)
        end, queued = (asyncio.create_task(worker.run(work, Request())) for work in (sys.exit, lambda: "never"))
        await asyncio.sleep(0.05)
        device.go.set()
        assert await first == "hold"
        for waiting, how in ((end, "dead"), (queued, "stopped")):
            with pytest.raises(Unavailable, match=f"worker is {how}; the server is going down"):
                await waiting

    asyncio.run(main())


def test_admission_counts_exactly_and_closes():
    metrics = Metrics()
    admission = Admission(max_requests=2, max_bytes=100, metrics=metrics)
    with admission.admit(100):
        with pytest.raises(Overloaded, match="payload bytes of all requests is 101; at most 100"):
            admission.admit(1).__enter__()
        with admission.admit(0):
            with pytest.raises(Overloaded, match="pending requests is 2; at most 2"):
                admission.admit(0).__enter__()
            assert metrics.registry.get_sample_value("selector_pending_requests") == 2
            assert metrics.registry.get_sample_value("selector_inflight_bytes") == 100
        admission.close()
        with pytest.raises(Unavailable, match="draining"):
            admission.admit(0).__enter__()
        started = time.monotonic()
        asyncio.run(admission.wait_idle(0.2))
        assert time.monotonic() - started >= 0.2, "one is still running"
    asyncio.run(admission.wait_idle(60))
    assert metrics.registry.get_sample_value("selector_inflight_bytes") == 0


def test_a_request_that_is_given_up_holds_its_permit_until_its_thread_has_ended():
    ended = []

    request = Request()

    def work():
        eventually(lambda: request.gone, 5)
        time.sleep(0.1)
        ended.append(time.monotonic())

    async def main():
        waiting = asyncio.create_task(in_thread(work, request))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended, "not before"

    asyncio.run(main())
