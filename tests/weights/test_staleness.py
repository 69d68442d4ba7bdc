"""Requests that accept new enough weights only: served and flagged, waiting, or refused."""

import asyncio
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
import torch
from selector_client import Selector
from selector_proto.v1 import selector_pb2 as pb
from support.model import TwoTower
from support.processes import eventually
from support.spans import spans_of
from support.trainers import IDS, PIXELS, request
from support.wire import embeddings, error_info, some_embeddings

from selector_server.engine.dispatcher import Dispatcher
from selector_server.engine.models import Models, SamplerSettings
from selector_server.engine.request import Request
from selector_server.errors import StaleWeights
from selector_server.telemetry.metrics import Metrics
from selector_server.weights.dating import Dated
from selector_server.weights.freshness import Freshness, WhenStale
from selector_server.weights.versions import SyncState, Version, Versions

SERVE, WAIT, REFUSE = pb.STALENESS_POLICY_SERVE, pb.STALENESS_POLICY_WAIT, pb.STALENESS_POLICY_REFUSE
REFUSED = grpc.StatusCode.FAILED_PRECONDITION


def counted(trainer, action) -> float:
    return trainer.server.metrics()("selector_stale_selections_total", action=action) or 0.0


def test_what_is_served_though_it_is_stale_is_flagged_and_counted(trainer):
    version, before = trainer.serve(1, step=7), counted(trainer, "serve")
    fresh = trainer.select(trainer_step=12, max_lag_steps=5, max_age_seconds=60)
    assert not fresh.stale
    behind = trainer.select(trainer_step=13, max_lag_steps=5)
    assert (behind.stale, behind.weights.version, behind.weights.lag_steps) == (True, version, 6)
    aged = trainer.select(max_age_seconds=1e-6)
    assert aged.stale
    assert list(aged.indices) == trainer.picks_of(1)
    assert not trainer.select(trainer_step=3, max_lag_steps=0).stale, "weights of a later step are new enough"
    assert counted(trainer, "serve") == before + 2


@pytest.mark.parametrize(
    ("fields", "field", "value", "limit"),
    [
        ({"trainer_step": 9, "max_lag_steps": 2}, "max_lag_steps", "2", "of step 6 is served, 3 steps behind"),
        ({"max_age_seconds": 1e-6}, "max_age_seconds", "1e-06", " s old"),
        ({"min_weights_version": 10**6}, "min_weights_version", "1000000", " is served"),
    ],
)
def test_refusals_come_at_once_and_say_what_is_served(trainer, fields, field, value, limit):
    version, before, started = trainer.serve(2, step=6), counted(trainer, "refuse"), time.monotonic()
    error = trainer.server.refuse(request(when_stale=REFUSE, **fields), timeout=20)
    assert time.monotonic() - started < 5
    info = error_info(error)
    assert (error.code(), info["reason"], info["field"], info["value"]) == (REFUSED, "STALE_WEIGHTS", field, value)
    assert info["limit"].startswith(f"version {version} ")
    assert info["limit"].endswith(limit)
    assert counted(trainer, "refuse") == before + 1


def test_a_wait_is_fulfilled_by_a_publication_and_holds_nobody_up(trainer):
    trainer.serve(3, step=10)
    before = counted(trainer, "wait")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(trainer.select, trainer_step=100, max_lag_steps=5, when_stale=WAIT)
        eventually(lambda: counted(trainer, "wait") == before + 1)
        for _ in range(3):
            assert trainer.select().weights.trainer_step == 10
        too_old = trainer.serve(4, step=94)
        assert trainer.select().weights.version == too_old
        assert not waiting.done()
        version = trainer.serve(5, step=95)
        reply = waiting.result(20)
    assert (reply.weights.version, reply.weights.lag_steps, reply.stale) == (version, 5, False)
    assert list(reply.indices) == trainer.picks_of(5)
    assert reply.stages.wait > 0
    assert trainer.select(trainer_step=95, max_lag_steps=0, when_stale=WAIT).stages.wait == 0


def test_a_wait_ends_shortly_before_the_deadline_and_says_why_nothing_newer_came(trainer):
    version, refused = trainer.serve(6, step=1), trainer.refused(step=50)
    before, started = (counted(trainer, "wait"), counted(trainer, "refuse")), time.monotonic()
    error = trainer.server.refuse(request(trainer_step=50, max_lag_steps=9, when_stale=WAIT), timeout=1.5)
    assert time.monotonic() - started > 0.9
    assert error.code() is REFUSED, "past the deadline its own code would come"
    shown = f"max_lag_steps is 9; version {version} of step 1 is served, 49 steps behind; version {refused}: "
    assert error.details().startswith(shown)
    assert "parameter logit_scale is NaN or infinite" in error.details()
    assert "; waited 1." in error.details()
    assert (counted(trainer, "wait"), counted(trainer, "refuse")) == (before[0] + 1, before[1] + 1)


OLD = Version(4, 40, Dated(0.0), "weights")


@pytest.mark.parametrize(
    ("asked", "served", "message", "action"),
    [
        ({}, OLD, None, None),
        ({"min_version": 4, "max_lag_steps": 10, "trainer_step": 50}, OLD, None, None),
        ({"max_lag_steps": 0}, OLD, None, None),  # the step is not known
        ({"min_version": 5}, OLD, "min_weights_version is 5; version 4 is served", "below"),
        ({"min_version": 1}, None, "min_weights_version is 1; no weights are served", "below"),
        ({"max_age_seconds": 1.0}, None, None, None),
        (
            {"max_lag_steps": 9, "trainer_step": 50},
            OLD,
            "max_lag_steps is 9; version 4 of step 40 is served, 10 steps behind",
            "stale",
        ),
        ({"max_age_seconds": 9.5}, OLD, r"max_age_seconds is 9\.5; version 4 is served, \d+\.\d{3} s old", "stale"),
    ],
)
def test_what_a_version_falls_short_of(asked, served, message, action):
    actions = {"stale": WhenStale.WAIT, "below": WhenStale.REFUSE}
    fresh = Freshness(**asked, when_stale=actions["stale"], below_minimum=actions["below"])
    breach = fresh.breach(served, scores=True)
    if message is None:
        assert breach is None
        return
    assert breach.action is actions[action]
    assert re.fullmatch(message, str(breach.error("")))
    assert re.fullmatch(f"{message}; nobody publishes; waited 1.50 s", str(breach.error("nobody publishes", 1.499)))
    unscored = fresh.breach(served, scores=False)
    assert (unscored is not None) == (action == "below"), "of what nobody scores with, only a number may be asked for"


def test_a_wait_that_ends_says_how_long_it_was_and_why_nothing_newer_came():
    versions = Versions(OLD)
    versions.report(SyncState.DISCONNECTED, error="nobody answers")
    models = Models(torch.device("cpu"), None, None, versions, None, SamplerSettings())
    waiting, serving = (
        SimpleNamespace(freshness=Freshness(max_age_seconds=1.0, when_stale=action), needs_weights=True)
        for action in (WhenStale.WAIT, WhenStale.SERVE)
    )
    assert str(models.awaited(waiting, 2.5)).endswith(" s old; nobody answers; waited 2.50 s")
    assert models.awaited(serving, 2.5) is None


class Aged:
    """Models, scorer and worker in whose queue the weights age once."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, work, request):
        self.runs += 1
        if self.runs == 1:
            raise StaleWeights("max_age_seconds", 1.0, "version 1 is served, 2 s old")
        return "picked"

    def awaited(self, task, waited):
        return None

    def least_seconds(self, task, found):
        return lambda stage: 0.0


@pytest.mark.parametrize(("when_stale", "runs"), [(WhenStale.WAIT, 2), (WhenStale.REFUSE, 1)])
def test_weights_that_age_in_the_queue_are_waited_for_again_or_refused(when_stale, runs):
    aged = Aged()
    task = SimpleNamespace(freshness=Freshness(max_age_seconds=1.0, when_stale=when_stale))
    request = Request(5.0)
    running = Dispatcher(aged, aged, aged, None, Metrics()).select(task, request)
    if when_stale is WhenStale.WAIT:
        assert asyncio.run(running) == "picked"
        assert request.stages.wait == 0
    else:
        with pytest.raises(StaleWeights):
            asyncio.run(running)
    assert aged.runs == runs


def test_a_wait_for_newer_weights_is_counted_and_in_the_trace():
    aged, metrics, admission = Aged(), Metrics(), SimpleNamespace(closed=False)
    looks = iter([StaleWeights("max_age_seconds", 1.0, "version 1 is served, 2 s old")] * 2)
    aged.runs, aged.awaited = 1, lambda task, waited: next(looks, None)
    request = Request(5.0)
    task = SimpleNamespace(freshness=Freshness(max_age_seconds=1.0, when_stale=WhenStale.WAIT))
    assert spans_of(Dispatcher(aged, aged, aged, admission, metrics).select(task, request)) == ["wait"]
    assert metrics.stale.labels("wait")._value.get() == 1
    assert 0 < request.stages.wait < 5


def test_a_client_that_leaves_ends_its_wait(trainer):
    trainer.serve(7)
    messages = request(min_weights_version=10**6, when_stale=WAIT).messages()
    call = trainer.server.stub.Select.future(iter(messages), timeout=30)
    trainer.server.wait_pending(1)
    call.cancel()
    trainer.server.wait_pending(0)


def test_a_minimum_version_is_waited_for_or_waived_only_when_asked(trainer):
    version = trainer.serve(8)
    assert trainer.server.refuse(request(min_weights_version=version + 1)).code() is REFUSED
    waived = trainer.select(min_weights_version=version + 1, when_stale=SERVE)
    assert (waived.stale, waived.weights.version) == (True, version)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(trainer.select, min_weights_version=version + 1, when_stale=WAIT)
        trainer.server.wait_pending(1)
        assert trainer.publish(TwoTower(9)) == version + 1
        assert waiting.result(20).weights.version == version + 1


def test_only_what_the_learner_scores_can_be_stale(trainer):
    trainer.serve(10)
    picky = {"trainer_step": 10**6, "max_lag_steps": 0, "max_age_seconds": 1e-6, "when_stale": REFUSE}
    assert not trainer.select(policy="uniform", **picky).stale
    assert not trainer.select(criterion=pb.CRITERION_EASY_REFERENCE, **picky).stale
    assert not trainer.server.select(embeddings(*some_embeddings(), **picky)).stale


def test_the_servers_own_settings(strict):
    info = strict.info().config
    assert (info["when_stale"], info["max_weights_lag_steps"]) == ("refuse", "3")
    assert strict.select(request()).weights.version == 0, "a lag needs the request's step"
    assert not strict.select(request(trainer_step=3)).stale
    error = strict.refuse(request(trainer_step=4))
    assert error.details() == "max_lag_steps is 3; version 0 of step 0 is served, 4 steps behind"
    assert not strict.select(request(trainer_step=4, max_lag_steps=4)).stale
    assert strict.select(request(trainer_step=4, when_stale=SERVE)).stale
    started = time.monotonic()
    assert strict.refuse(request(trainer_step=4, when_stale=WAIT), timeout=20).code() is REFUSED
    assert time.monotonic() - started < 5, "without a source there is nothing to wait for"


@pytest.mark.parametrize(
    ("fields", "field", "value", "limit"),
    [
        ({"max_age_seconds": float("nan")}, "max_age_seconds", "nan", "must be positive and at most 1e+09"),
        ({"max_age_seconds": float("inf")}, "max_age_seconds", "inf", "must be positive and at most 1e+09"),
        ({"max_age_seconds": 0.0}, "max_age_seconds", "0.0", "must be positive and at most 1e+09"),
        ({"max_age_seconds": -1.0}, "max_age_seconds", "-1.0", "must be positive and at most 1e+09"),
        ({"max_lag_steps": 5}, "max_lag_steps", "5", "needs trainer_step"),
        (
            {"when_stale": 99},
            "when_stale",
            "99",
            "must be one of STALENESS_POLICY_UNSPECIFIED, STALENESS_POLICY_SERVE, STALENESS_POLICY_WAIT, "
            "STALENESS_POLICY_REFUSE",
        ),
    ],
)
def test_bad_values_are_named(strict, fields, field, value, limit):
    error = strict.refuse(request(**fields))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(error) == {"reason": "INVALID_REQUEST", "field": field, "value": value, "limit": limit}


def test_the_client_says_how_new_weights_must_be(strict):
    with Selector(strict.address, max_lag_steps=2, when_stale="serve", timeout=30) as selector:
        assert not selector.select(PIXELS, IDS, step=2).stale
        assert selector.select(PIXELS, IDS, step=3).stale
        assert selector.statistics.stale == 1
        with pytest.raises(ValueError, match="max_lag_steps is 2; it needs the step"):
            selector.select(PIXELS, IDS)
    with Selector(strict.address, max_age_seconds=1e-6, timeout=30) as selector:
        assert selector.select(PIXELS, IDS).fallback == "failed_precondition"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_lag_steps": -1}, "max_lag_steps is -1"),
        ({"max_age_seconds": float("nan")}, "max_age_seconds is nan"),
        ({"when_stale": "hope"}, "when_stale is 'hope'; must be one of serve, wait, refuse"),
    ],
)
def test_the_clients_settings_are_checked(settings, named):
    with pytest.raises(ValueError, match=named):
        Selector("localhost:1", **settings)


def test_a_drain_ends_every_wait(sidecar, bundles, redis_url, run_name):
    server = sidecar(bundles.flags | {"redis": redis_url, "run": run_name})
    messages = request(min_weights_version=1, when_stale=WAIT).messages()
    call = server.stub.Select.future(iter(messages), timeout=30)
    server.wait_pending(1)
    server.signal(signal.SIGTERM)
    assert call.exception(10).code() is grpc.StatusCode.UNAVAILABLE
    assert "draining" in call.exception().details()
    server.hang_up()
    assert server.process.wait(20) == 0
