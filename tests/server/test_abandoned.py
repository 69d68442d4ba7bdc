"""Work that nobody waits for any more ends at its next step: the selection itself, on its thread, without a server."""

import asyncio
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from support.model import POLICIES, plan, samples
from support.processes import eventually

from selector_server.encoding import bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.engine.caller import Caller
from selector_server.engine.preparation import ModelInput, Prepared
from selector_server.engine.selection import Selection
from selector_server.engine.task import Embeddings, ModelEmbeddings, Samples, Stages, Task
from selector_server.engine.worker import Worker
from selector_server.errors import Abandoned, TooLate, Unavailable
from selector_server.sampling import Criterion, Loss
from selector_server.weights.versions import Version, Versions


class Leaves(Caller):
    """Goes away when it is asked the n-th time at `stage`."""

    def __init__(self, stage, times, seconds=None):
        super().__init__(seconds)
        self._at, self._times, self.asked = stage, times, 0

    def check(self, needed=0.0):
        if self.stage == self._at:
            self.asked += 1
            if self.asked == self._times:
                self.leave()
        super().check(needed)


def task(candidates, size, chunks):
    kind = {"policy": POLICIES["joint"], "criterion": Criterion.LEARNABILITY, "loss": Loss.SIGMOID}
    return Task(candidates, size, plan=plan(size // 2, chunks), **kind)


def embedded(size=400, chunks=100) -> Prepared:
    sides = np.random.default_rng(0).standard_normal((2, 2, size, 8)).astype(np.float32)
    return Prepared(task(Embeddings(*(ModelEmbeddings(*side, 10.0, -10.0) for side in sides)), size, chunks))


def selection(learner=None, reference=None, store=None) -> Selection:
    return Selection(torch.device("cpu"), learner, reference, store, None, None, False)


def test_a_draw_ends_after_the_round_in_which_its_caller_leaves():
    caller = Leaves("sample", 5)
    with pytest.raises(Abandoned, match="at sample"):
        selection().run(embedded(), caller)
    assert caller.asked == 5, "of 100 rounds"
    assert len(selection().run(embedded(), Caller()).indices) == 200


@pytest.fixture(scope="module")
def models(bundles):
    device = Device("cpu", 1)
    learner, reference = (
        Model(bundle.load(path, role), device, 2)
        for path, role in ((bundles.learner_path, "learner"), (bundles.reference_path, "reference"))
    )
    store = Versions(Version(0, 0, time.time(), learner.bundled_weights()))
    return learner, reference, store


def encoded(size=20) -> Prepared:
    pixels, tokens = samples(size)
    inputs = ModelInput(pixels, tokens.astype(np.int64))
    return Prepared(task(Samples(pixels, tokens), size, 2), inputs, inputs)


# Two towers of ten micro-batches, and a look before them, for each model.
@pytest.mark.parametrize("times", [1, 3, 15, 22, 30, 40])
def test_encoding_ends_at_the_micro_batch_at_which_its_caller_leaves(models, times):
    caller = Leaves("encode", times)
    with pytest.raises(Abandoned, match="at encode"):
        selection(*models).run(encoded(), caller)
    assert caller.asked == times


def test_what_cannot_be_in_time_is_not_begun(models):
    select = selection(*models)
    stages = vars(select.run(encoded(), Caller()).stages)
    least = sum(stages[name] for name in ("preprocess", "encode_learner", "encode_reference", "sample"))
    with pytest.raises(TooLate, match=r"from preprocess on, at least 0\.\d{3} s are needed"):
        select.begin(encoded().task, None, Caller(least * 0.9), "preprocess", "preprocess")
    select.begin(encoded().task, None, Caller(least + 60), "preprocess", "preprocess")
    select.begin(encoded(10).task, None, Caller(0.001), "preprocess", "preprocess")  # of a smaller one nothing is known
    caller = Caller(60)
    select.begin(encoded().task, None, caller, "sample", "sample")
    assert caller.stage == "sample"


# The worker


class Result:
    def __init__(self):
        self.stages = Stages()


class Array:
    """Of a request."""


async def settled(worker, run, prepared, caller):
    try:
        return await worker.call(run, prepared, caller)
    except Exception as error:
        return error


def worker_of(run=None, probe=lambda: None):
    worker = Worker(run or (lambda *_: Result()), 60, probe)
    worker.start()
    return worker


def test_a_request_dropped_from_the_queue_leaves_no_array_behind():
    go, running = threading.Event(), threading.Event()

    def hold(prepared, caller):
        running.set()
        go.wait(20)
        return Result()

    async def main():
        worker = worker_of()
        first = asyncio.create_task(worker.call(hold, Array(), Caller()))
        await asyncio.to_thread(running.wait, 10)
        array, caller = Array(), Caller()
        gone = weakref.ref(array)
        second = asyncio.create_task(worker.call(hold, array, caller))
        await asyncio.sleep(0.01)
        del array
        second.cancel()
        await asyncio.wait([second])
        assert caller.gone
        del second
        assert gone() is None, "while the worker is still busy with another one"
        go.set()
        await first
        worker.stop(5)

    asyncio.run(main())


def test_a_lost_device_ends_the_worker_and_fails_all_that_wait():
    lost = []

    def probe():
        if lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def fail(prepared, caller):
        raise ZeroDivisionError

    def lose(prepared, caller):
        lost.append(True)
        raise RuntimeError("CUDA error")

    async def main():
        worker = worker_of(probe=probe)
        assert isinstance(await settled(worker, fail, Array(), Caller()), ZeroDivisionError)
        assert worker.healthy, "a failure of one request"
        outcomes = await asyncio.gather(
            *(settled(worker, run, Array(), Caller()) for run in (lose, fail, fail)),
        )
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
        assert not worker.healthy
        assert not worker.alive
        with pytest.raises(Unavailable):
            await worker.call(fail, Array(), Caller())
        await asyncio.to_thread(eventually, lambda: not worker._thread.is_alive())

    asyncio.run(main())
