"""The trainer's side against real sidecars that are there, absent, killed, hung and back again."""

import io
import logging
import signal
import subprocess
import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from selector_client import ModelEmbeddings, RemoteError, Selector, SelectorClientError, Unreachable
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.model import WORDS, plan, samples
from support.processes import eventually, free_port, spawn
from support.wire import some_embeddings, some_losses

PIXELS, IDS = samples(60)
LEARNER, REFERENCE = np.random.default_rng(0).random((2, 50), dtype=np.float32)


def independent(address, **settings) -> Selector:
    return Selector(address, policy="independent", **settings)


def losses(selector, **options):
    return selector.select_losses(LEARNER, REFERENCE, **options)


# What a sidecar answers


def test_raw_samples_are_selected_by_the_server(server, bundles):
    with Selector(server.address, seed=5) as selector:
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

    with Selector(server.address, seed=5) as selector:
        texts = [" ".join(WORDS[i] for i in row) for row in IDS]
        picked = selector.select([png(image) for image in PIXELS], texts)
    assert picked.indices.tolist() == bundles.picks(PIXELS, IDS, plan(12, seed=5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_token_ids_of_any_integer_type_and_torch_tensors(server, bundles, dtype):
    with Selector(server.address, seed=5) as selector:
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


# A sidecar that is not there


def assert_uniform(selection, reason, picks=10, candidates=50):
    assert selection.fallback == reason
    assert len(set(selection.indices.tolist())) == len(selection.indices) == picks
    assert selection.indices.dtype == np.int64
    assert 0 <= selection.indices.min() <= selection.indices.max() < candidates
    assert selection.scores is selection.objective is selection.weights_version is None


def test_an_absent_server_costs_little_time_and_is_counted(caplog):
    with independent(f"127.0.0.1:{free_port()}", seed=1) as selector:
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            selections = [losses(selector) for _ in range(5)]
        assert time.monotonic() - started < 3
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
            assert time.monotonic() - started < 1
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
        assert 0.4 < time.monotonic() - started < 2
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


# Mistakes of the caller: always raised, whatever on_error says


@pytest.mark.parametrize(
    ("settings", "kind", "named"),
    [
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'"),
        ({"polcy": "joint"}, TypeError, "polcy"),
        ({"sub_batch_size": 3, "filter_ratio": 0.5}, ValueError, "not both"),
        ({"filter_ratio": 1.0}, ValueError, "filter_ratio is 1.0"),
        ({"filter_ratio": 0.0}, ValueError, "filter_ratio is 0.0"),
        ({"filter_ratio": float("nan")}, ValueError, "filter_ratio is nan"),
        ({"criterion": "learnable"}, ValueError, "criterion is 'learnable'; must be one of learnability"),
        ({"criterion": "unspecified"}, ValueError, "criterion is 'unspecified'"),
        ({"draw": "all"}, ValueError, "draw is 'all'; must be one of sample, top-k"),
    ],
)
def test_wrong_settings(settings, kind, named):
    with pytest.raises(kind, match=named):
        Selector("localhost:1", **settings)


@pytest.mark.parametrize(
    ("images", "texts", "kind", "named"),
    [
        (PIXELS.astype(np.float32), IDS, TypeError, "images has dtype float32; must be uint8"),
        (PIXELS[:, 0, 0], IDS, ValueError, r"images has shape \[60, 3\]"),
        (PIXELS[:0], IDS[:0], ValueError, r"images has shape \[0, 8, 8, 3\]"),
        (PIXELS, IDS[:59], ValueError, "texts has 59 entries, images has 60"),
        (PIXELS, IDS.astype(np.float64), TypeError, "texts has dtype float64"),
        (PIXELS, IDS[0], ValueError, r"texts has shape \[6\]"),
        (PIXELS, ["w1"] * 59, ValueError, "texts has 59 entries, images has 60"),
        (PIXELS, ["w1", None] * 30, TypeError, "texts"),
        ([b"file"] * 3, ["w1"] * 4, ValueError, "texts has 4 entries, images has 3"),
        ([b"file", None], ["w1"] * 2, TypeError, "images"),
        ([], [], TypeError, "images"),
        ("image", "text", TypeError, "images"),
    ],
)
def test_wrong_samples(images, texts, kind, named):
    with pytest.raises(kind, match=named):
        Selector("localhost:1").select(images, texts)


def test_wrong_embeddings_losses_and_sizes():
    (image, text, *logit), reference = some_embeddings()
    selector = Selector("localhost:1")
    learner = ModelEmbeddings(image, text, *logit)
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(learner, ModelEmbeddings(reference[0][:9], reference[1][:9], 1.0))
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(ModelEmbeddings(image, text[:9], 1.0), None)
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(None, None)
    with pytest.raises(TypeError, match="dtype float64 cannot be sent"):
        selector.select_embeddings(ModelEmbeddings(image.astype(np.float64), text, 1.0), None)
    with pytest.raises(ValueError, match="same length"):
        selector.select_losses(LEARNER, REFERENCE[:9])
    with pytest.raises(ValueError, match="same length"):
        selector.select_losses(None, None)
    with pytest.raises(TypeError, match="dtype float64 cannot be sent"):
        selector.select_losses(LEARNER.astype(np.float64), None)
    with pytest.raises(ValueError, match=r"[Oo]ut of range|-1"):
        losses(selector, step=-1)
    for size in (0, 51, -1):
        with pytest.raises(ValueError, match=f"{size} picks of 50 candidates"):
            losses(independent("localhost:1", sub_batch_size=size))
    with pytest.raises(ValueError, match="0 picks of 50 candidates"):
        losses(independent("localhost:1", filter_ratio=0.99))
    assert selector.statistics.requests == 0


def test_no_thread_is_left_behind(plain_server):
    before = set(threading.enumerate())
    with independent(plain_server.address) as selector:
        losses(selector)
    eventually(lambda: set(threading.enumerate()) <= before)
