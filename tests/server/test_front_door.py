"""Engine.select by itself, without a server: the parts of a request's way, in order, and what is left of it."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
import torch
from support.model import POLICIES, plan
from support.processes import eventually

from selector_server.engine.admission import Admission
from selector_server.engine.candidates.preparation import Preparation
from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.engine.dispatcher import Dispatcher
from selector_server.engine.engine import Engine
from selector_server.engine.models import Models, SamplerSettings
from selector_server.engine.ranks import open_ranks
from selector_server.engine.request import Request
from selector_server.engine.scorer import Scorer
from selector_server.engine.task import Rule, Task
from selector_server.engine.worker import Worker
from selector_server.errors import LimitExceeded, NotPossible
from selector_server.sampling import Criterion, Loss
from selector_server.weights.freshness import Freshness, WhenStale


class Payload(np.ndarray):
    """An array that a test can wait for to be gone."""


def losses_task(size=40, **settings):
    values = np.arange(size, dtype=np.float32).view(Payload)
    kind = {
        "policy": POLICIES["independent"],
        "rule": Rule(Criterion.HARD_LEARNER, Criterion.HARD_LEARNER, Loss.SIGMOID),
    }
    return Task(ScalarLosses(values, None), plan=plan(4, 1), **kind, **settings)


@pytest.fixture
def engine():
    """An engine without models, and what it counts in."""
    from selector_server.telemetry.metrics import Metrics

    metrics, worker = Metrics(), Worker(60)
    admission = Admission(2, 1000, metrics)
    models = Models(torch.device("cpu"), None, None, None, None, SamplerSettings())
    scorer = Scorer(models)
    ranks = open_ranks(Dispatcher(models, scorer, worker, admission, metrics), admission, 5.0, None)
    worker.start()
    engine = Engine(admission, models, Preparation(None, None, None), scorer, ranks, metrics)
    engine.pending = lambda: metrics.registry.get_sample_value("selector_pending_requests")
    yield engine
    worker.stop(5)


def asked(engine, make, payload_bytes=160):
    """The request after its selection, which may fail, and whether its content was received."""
    request, received = Request(30.0), []

    async def content():
        request.allocated()  # the service's callback knows its request too
        received.append(engine.pending())
        return make()

    async def main():
        request.payload_bytes, request.content = payload_bytes, content
        with request:
            await engine.select(request)

    try:
        asyncio.run(main())
    except Exception as error:
        request.error = error
    request.received_at = received
    return request


def test_content_is_received_once_admitted_and_its_permit_is_given_back(engine):
    request = asked(engine, losses_task)
    assert request.received_at == [1]
    assert len(request.result.indices) == 4
    assert request.stages.sample > 0
    assert engine.pending() == 0


def test_what_is_too_large_is_never_received(engine):
    request = asked(engine, losses_task, payload_bytes=1001)
    assert isinstance(request.error, LimitExceeded)
    assert request.received_at == []
    assert engine.pending() == 0


def test_what_the_models_cannot_do_is_refused_and_counted(engine):
    stale = Freshness(min_version=1, when_stale=WhenStale.REFUSE)
    request = asked(engine, lambda: losses_task(freshness=stale))
    assert isinstance(request.error, NotPossible)
    assert (request.result, engine.pending()) == (None, 0)


def test_nothing_of_a_payload_is_left_after_the_reply_though_nobody_collects_garbage(engine):
    gone = []

    def make():
        task = losses_task()
        gone.append(weakref.ref(task.candidates.learner))
        return task

    gc.collect()
    gc.disable()
    try:
        request = asked(engine, make)
        assert request.result is not None
        del request
        eventually(lambda: gone[0]() is None, 5)  # the worker's thread lets go a moment later
    finally:
        gc.enable()
