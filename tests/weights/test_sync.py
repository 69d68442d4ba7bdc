"""Weights from trainer to sidecar through a real Redis-protocol server, whole or not at all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from selector_client import WeightPublisher
from selector_proto.v1 import selector_pb2 as pb
from support.model import TwoTower, as_published
from support.processes import READY, eventually, free_port
from support.runs import IDS, PIXELS, POLL, Run, fetch
from support.wire import raw

# Good versions


def test_before_anything_is_published(sidecar, bundles, redis_url, run_name):
    server = sidecar(bundles.flags | POLL | {"redis": redis_url, "run": run_name})
    status = server.status()
    assert (status.serving.version, status.newest_version, status.last_error) == (0, 0, "")
    assert status.state == pb.SYNC_STATE_WAITING
    assert server.info().run == run_name
    assert [server.health(name) for name in ("", READY, "weights")] == ["SERVING"] * 3
    assert server.health("nothing of that name") == "NOT_FOUND"
    assert len(server.select(raw(PIXELS, IDS, run=run_name)).indices) == 12


def test_a_published_version_is_served_and_picks_with_its_weights(run):
    model, before = TwoTower(10), time.time()
    swaps = run.server.status().swaps
    version = run.publish(model, step=7)
    status = run.server.status()
    assert (status.newest_version, status.state, status.last_error) == (version, pb.SYNC_STATE_CURRENT, "")
    assert (status.serving.trainer_step, status.swaps) == (7, swaps + 1)
    reply = run.select(trainer_step=9)
    assert (reply.weights.version, reply.weights.trainer_step, reply.weights.lag_steps) == (version, 7, 2)
    assert 0 <= reply.weights.age_seconds <= time.time() - before + 0.1
    assert list(reply.indices) == run.picks_of(as_published(model))
    assert list(reply.indices) != run.picks_of(run.models.learner), "the bundle's own weights pick otherwise"
    value = run.server.metrics()
    assert value("selector_weights_sync_total", result="served") >= 1
    assert value("selector_weights_newest_version") == version
    assert value("selector_weights_source_connected") == 1
    eventually(lambda: run.server.metrics()("selector_weights_version") == version)


def test_logit_scale_and_bias_are_those_of_the_version(run):
    model = TwoTower(11)
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        model.logit_bias.fill_(-3.0)
    run.publish(model)
    assert list(run.select().indices) == run.picks_of(as_published(model))


@pytest.mark.parametrize(
    ("dtype", "rounded"), [("fp32", torch.Tensor.float), ("fp16", torch.Tensor.half), ("bf16", torch.Tensor.bfloat16)]
)
def test_wire_precision(run, redis_url, dtype, rounded):
    model, wanted = TwoTower(12), TwoTower(0)
    state = {k: rounded(v).float() if v.numel() >= 1024 else v for k, v in model.state_dict().items()}
    wanted.load_state_dict(state)
    with WeightPublisher(redis_url, run.keys.run, dtype=dtype) as publisher:
        publisher.publish(1, model)
        assert publisher.flush()
        version = publisher.last_version
    run.take_over()
    eventually(lambda: run.server.status().serving.version == version)
    assert list(run.select().indices) == run.picks_of(wanted)
    stored = fetch(redis_url, run.keys.run, version).tensors["image.weight"]
    assert stored.dtype == {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
    assert stored.data == rounded(model.image.weight.detach()).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_taken_off(run, prefix):
    model = TwoTower(13)
    run.publish({prefix + name: value for name, value in model.state_dict().items()})
    assert list(run.select().indices) == run.picks_of(as_published(model))


def test_models_in_bfloat16_arrays_and_extra_tensors(run):
    model = TwoTower(14)
    wanted = TwoTower(0)
    wanted.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    run.publish({name: value.bfloat16() for name, value in model.state_dict().items()})
    assert list(run.select().indices) == run.picks_of(wanted)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    run.publish(arrays | {"batches": np.int64(7), "mask": np.ones(3, bool), "ema": np.ones((2, 2), np.float64)})
    assert list(run.select().indices) == run.picks_of(as_published(model))


def test_what_is_published_is_the_moment_of_the_call(run):
    model = TwoTower(15)
    wanted = run.picks_of(as_published(model))
    assert run.publisher.publish(0, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert run.publisher.flush()
    version = run.publisher.last_version
    eventually(lambda: run.server.status().serving.version == version)
    assert list(run.select().indices) == wanted


def test_the_latest_version_wins(run):
    models = [TwoTower(20 + i) for i in range(6)]
    for step, model in enumerate(models):
        run.publisher.publish(step, model)
    assert run.publisher.flush()
    version = run.publisher.last_version
    serving = eventually(lambda: (s := run.server.status().serving).version == version and s)
    assert serving.trainer_step == 5
    assert list(run.select().indices) == run.picks_of(as_published(models[-1]))


def test_the_oldest_version_that_a_request_accepts(run):
    version = run.publish(TwoTower(30))
    assert run.select(min_weights_version=version).weights.version == version
    error = run.server.refuse(raw(PIXELS, IDS, min_weights_version=version + 1))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == f"min_weights_version is {version + 1}; version {version} is served"


def test_no_reply_mixes_versions(run):
    """Selections while versions come in: each reply's picks are exactly those of the version that it names."""
    models = [TwoTower(40 + i) for i in range(8)]
    wanted = {run.publish(models[0]): run.picks_of(as_published(models[0]))}
    published, seen, stop = [], [], threading.Event()

    def select():
        while not stop.is_set():
            reply = run.select()
            seen.append((reply.weights.version, list(reply.indices)))

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(select) for _ in range(3)]
        try:
            for model in models[1:]:
                published.append((run.publish(model), model))
                eventually(lambda: published[-1][0] in {version for version, _ in seen})
        finally:
            stop.set()
        for worker in workers:
            worker.result(30)
    wanted |= {version: run.picks_of(as_published(model)) for version, model in published}
    assert len({tuple(picks) for picks in wanted.values()}) == 8, "versions can be told apart by their picks"
    for version, picks in seen:
        assert picks == wanted[version]
    assert {version for version, _ in published} <= {version for version, _ in seen}


# Redis comes and goes


def test_redis_that_is_absent_appears_and_is_killed_and_comes_back_empty(sidecar, bundles, start_valkey, run_name):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    server = sidecar(bundles.flags | POLL | {"redis": url, "run": run_name})
    first, second, third, fourth = (TwoTower(60 + i) for i in range(4))
    # Absent: the trainer trains on, the sidecar serves what it has.
    status = eventually(lambda: (s := server.status()).state == pb.SYNC_STATE_DISCONNECTED and s)
    assert "refused" in status.last_error
    assert server.select(raw(PIXELS, IDS)).weights.version == 0
    publisher = WeightPublisher(url, run_name)
    started = time.monotonic()
    assert publisher.publish(1, first)
    assert time.monotonic() - started < 10, "the trainer does not wait for a Redis that stays away"
    eventually(lambda: publisher.failures)
    assert "refused" in publisher.last_error
    assert not publisher.flush(0.1)
    # It appears: what was taken is published and served.
    valkey = start_valkey(port)
    run = Run(run_name, url, server, bundles)
    run.publisher.close()
    run.publisher = publisher
    eventually(lambda: server.status().serving.version == 1, 30)
    assert publisher.last_error == ""
    assert list(run.select().indices) == run.picks_of(as_published(first))
    # It is killed: the served version stays.
    valkey.terminate()
    eventually(lambda: server.status().state == pb.SYNC_STATE_DISCONNECTED)
    eventually(lambda: server.metrics()("selector_weights_source_connected") == 0)
    assert list(run.select().indices) == run.picks_of(as_published(first))
    # It comes back empty: the publisher goes on where it was.
    start_valkey(port)
    assert run.publish(second) == 2
    assert list(run.select().indices) == run.picks_of(as_published(second))
    # Empty again, and another trainer, which counts from one: a lower number, other weights.
    run.redis.flushall()
    run.take_over()
    assert run.publish(third) == 1
    eventually(lambda: list(run.select().indices) == run.picks_of(as_published(third)), 20)
    assert run.publish(fourth) == 2
    assert list(run.select().indices) == run.picks_of(as_published(fourth))
    assert server.status().state == pb.SYNC_STATE_CURRENT
    run.publisher.close()


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_publisher_does_not_sweep_what_it_published_to_a_restarted_redis(start_valkey, run_name, before):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    valkey = start_valkey(port)
    with WeightPublisher(url, run_name) as publisher:
        for step in range(before):
            publisher.publish(step, TwoTower(step))
            assert publisher.flush()
        assert publisher.last_version == before
        valkey.terminate()
        start_valkey(port)
        for version in range(before + 1, before + 5):
            publisher.publish(version, TwoTower(70))
            assert publisher.flush(20)
            assert publisher.last_version == version
            assert fetch(url, run_name, version).manifest.trainer_step == version
