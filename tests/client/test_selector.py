"""The trainer's side against real sidecars."""

import io
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from selector_client import ModelEmbeddings, RemoteError, Selector
from selector_proto.v1 import selector_pb2 as pb
from support.model import WORDS, plan, samples
from support.processes import eventually, spawn
from support.selectors import LEARNER, REFERENCE, independent, losses
from support.wire import some_embeddings

PIXELS, IDS = samples(60)


# What a sidecar answers


def test_raw_samples_are_selected_by_the_server(server, bundles):
    with Selector(server.address, policy="joint", seed=5) as selector:
        first = selector.select(PIXELS, IDS, step=3)
        assert first.indices.dtype == np.int64
        assert first.indices.tolist() == bundles.picks(PIXELS, IDS, plan(12, seed=5))
        assert (first.fallback, first.seed) == ("", 5)
        assert len(first.scores) == 12
        assert first.objective != first.objective_uniform
        assert (first.weights_version, first.weights_step, first.weights_lag_steps) == (0, 0, 3)
        assert first.weights_age_seconds > 0
        assert first.stage_seconds.keys() >= {"receive", "queue", "preprocess", "encode_learner", "sample"}
        # The seed counts up, so that each step draws anew and the run can be repeated.
        assert selector.select(PIXELS, IDS).indices.tolist() == bundles.picks(PIXELS, IDS, plan(12, seed=6))


def test_files_and_strings(server, bundles):
    def png(image):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return out.getvalue()

    with Selector(server.address, policy="joint", seed=5) as selector:
        texts = [" ".join(WORDS[i] for i in row) for row in IDS]
        picked = selector.select([png(image) for image in PIXELS], texts)
    assert picked.indices.tolist() == bundles.picks(PIXELS, IDS, plan(12, seed=5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_token_ids_of_any_integer_type_and_torch_tensors(server, bundles, dtype):
    with Selector(server.address, policy="joint", seed=5) as selector:
        wanted = bundles.picks(PIXELS, IDS, plan(12, seed=5))
        assert selector.select(torch.from_numpy(PIXELS), IDS.astype(dtype)).indices.tolist() == wanted


def test_embeddings(plain_server):
    learner, reference = (ModelEmbeddings(*model) for model in some_embeddings())
    with Selector(plain_server.address, seed=1, on_error="raise") as selector:
        picked = selector.select_embeddings(learner, reference)
    assert len(picked.indices) == 8
    assert picked.weights_version is picked.weights_step is None
    with Selector(plain_server.address, seed=1, criterion="easy-reference", on_error="raise") as selector:
        assert len(selector.select_embeddings(None, reference).indices) == 8


def test_settings_reach_the_server(plain_server):
    with independent(plain_server.address, draw="top-k", sub_batch_size=7, criterion="hard-learner") as selector:
        assert losses(selector).indices.tolist() == np.argsort(-LEARNER, kind="stable")[:7].tolist()
    with independent(plain_server.address, draw="top-k", filter_ratio=0.9, on_error="raise") as selector:
        assert losses(selector).indices.tolist() == np.argsort(REFERENCE - LEARNER, kind="stable")[:5].tolist()
    for setting, field in (({"min_weights_version": 9}, "min_weights_version"), ({"run": "other"}, "run")):
        with independent(plain_server.address, on_error="raise", **setting) as selector:
            with pytest.raises(RemoteError, match=rf"FAILED_PRECONDITION: {field} is ") as caught:
                losses(selector)
            assert caught.value.reason == "failed_precondition"
    for setting in ({"chunks": 11}, {"gain": -1.0}):
        with independent(plain_server.address, on_error="raise", **setting) as selector:
            with pytest.raises(RemoteError, match=rf"INVALID_ARGUMENT: {next(iter(setting))} is "):
                losses(selector)


def test_the_same_seed_repeats_a_run_and_none_does_not(plain_server):
    def run(seed):
        with independent(plain_server.address, seed=seed, gain=0.1) as selector:
            return [losses(selector).indices.tolist() for _ in range(3)]

    assert run(1) == run(1)
    assert run(None) != run(None)
    first = run(1)
    assert len({tuple(picks) for picks in first}) == 3
    assert run(2)[:2] == first[1:], "step n of seed s is step n - 1 of seed s + 1"


def test_connect_and_weights_status(server, plain_server):
    with Selector(server.address) as selector:
        assert selector.connect().learner.name == "tiny"
        assert selector.weights_status().state == pb.SYNC_STATE_OFF


def test_statistics(plain_server):
    with independent(plain_server.address) as selector:
        for _ in range(3):
            losses(selector)
        statistics = selector.statistics
    assert (statistics.requests, statistics.candidates, statistics.picks) == (3, 150, 30)
    assert 0 < statistics.seconds < 60
    assert statistics.fallbacks == {}
    assert statistics.weights_versions == set()


def test_many_threads_share_one_selector(plain_server):
    with independent(plain_server.address, seed=0, on_error="raise") as selector, ThreadPoolExecutor(8) as pool:
        picked = list(pool.map(lambda _: losses(selector), range(64)))
    assert sorted(selection.seed for selection in picked) == list(range(64))
    assert selector.statistics.requests == 64


def test_a_closed_selector_opens_again(plain_server):
    selector = independent(plain_server.address, on_error="raise")
    losses(selector)
    selector.close()
    selector.close()
    assert len(losses(selector).indices) == 10
    selector.close()


def test_more_candidates_than_fit_one_message(plain_server):
    values = np.random.default_rng(0).random((2, 1_000_000), dtype=np.float32)
    with independent(plain_server.address, sub_batch_size=10, draw="top-k", on_error="raise") as selector:
        wanted = np.argsort(values[1] - values[0], kind="stable")[:10].tolist()
        assert selector.select_losses(*values).indices.tolist() == wanted


# Forks


FORKED = """
import os, sys
import numpy as np
from selector_client import Selector

values = np.random.default_rng(0).random((2, 50), dtype=np.float32)
selector = Selector(sys.argv[1], policy="independent", seed=7, timeout=20, on_error="raise")
parent = selector.select_losses(*values).indices.tolist()
for _ in range(6):
    child = os.fork()
    if child == 0:
        for _ in range(3):
            selector.select_losses(*values)
        selector.close()
        os._exit(0)
    for _ in range(3):
        selector.select_losses(*values)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    selector.select_losses(*values)
selector.close()
print("all fine")
"""


def test_a_forked_child_selects_through_its_own_channel(plain_server):
    process = spawn("-c", FORKED, plain_server.address, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stdout == "all fine\n", stderr


def test_no_thread_is_left_behind(plain_server):
    before = set(threading.enumerate())
    with independent(plain_server.address) as selector:
        losses(selector)
    eventually(lambda: set(threading.enumerate()) <= before)
