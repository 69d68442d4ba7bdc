"""What a selection takes: asked once, given as time, and said before the first step where it does not fit."""

import asyncio
import logging
import pickle
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from selector_client import AsyncSelector, SelectingLoader, Selector
from selector_client.selecting import expectation as module
from selector_client.selecting.expectation import Expectation
from selector_client.selecting.settings import Settings
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.processes import free_port

B = 40
SAMPLES = {"images": np.zeros((B, 8, 8, 3), np.uint8), "texts": np.ones((B, 4), np.int64)}
IDS = [f"{n:09}" for n in range(B)]


def info(learner=0.02, reference=0.03, cached=0, **config) -> pb.GetServerInfoResponse:
    """A sidecar whose models take these seconds for a sample."""
    image = pb.ImageSpec(height=224, width=224, channels=3)
    return pb.GetServerInfoResponse(
        device="cpu",
        policies=["joint", "uniform"],
        config={"stall_seconds": "120.0", "micro_batch": "0", "cache": "", "peers": ""} | config,
        learner=pb.ModelInfo(name="a", image=image, encode_seconds_per_sample=learner),
        reference=pb.ModelInfo(
            name="b",
            image=image,
            encode_seconds_per_sample=reference,
            cached_samples=cached,
            cached_id="00007/000000001" if cached else "",
        ),
    )


class Sidecar(rpc.SelectorServiceServicer):
    """Answers after `seconds`, and counts how often it is asked what it is."""

    def __init__(self, about, seconds, cached):
        self.about, self.seconds, self.cached, self.asked = about, seconds, cached, 0

    def GetServerInfo(self, request, context):
        self.asked += 1
        if self.about is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
        return self.about

    def Select(self, request_iterator, context):
        size = next(request_iterator).selection.samples.pixels.shape[0]
        list(request_iterator)
        time.sleep(self.seconds)
        return pb.SelectResponse(indices=range(size // 5), cached_references=self.cached)


@pytest.fixture
def fake():
    """Starts a sidecar that is none: its service and its address."""
    servers = []

    def start(about, seconds=0.0, cached=0, port=0):
        server, service = grpc.server(futures.ThreadPoolExecutor(8)), Sidecar(about, seconds, cached)
        rpc.add_SelectorServiceServicer_to_server(service, server)
        servers.append(server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        return service, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.fixture
def said(caplog):
    """What the client has said of the time that selections take."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == module.__name__]


@pytest.fixture
def hurried(monkeypatch):
    """A selector without a timeout waits 0.4 s while nothing is known."""

    def make(address, **settings):
        selector = Selector(address, **settings)
        selector._session.expectation._least = 0.4
        return selector

    return make


def test_at_2000_candidates_one_line_before_the_first_step_says_what_to_set(fake, said):
    _, address = fake(info())
    big = {name: np.repeat(values, 50, axis=0) for name, values in SAMPLES.items()}
    steps = []
    with Selector(address, timeout=10.0) as selector:
        for _ in SelectingLoader([big] * 3, selector):
            steps.append(len(said()))
    assert steps == [1, 1, 1]
    [line] = said()
    assert "\n" not in line
    assert line.startswith("a selection of 2,000 candidates takes the sidecar about 100 s ")
    for part in (
        "learner 20 ms and reference 30 ms for each, on cpu",
        "but it has 10 s, so that batches will be uniform",
        "set timeout=200 and the sidecar's --stall-seconds above that",
        "choose B <= 133",
        "smaller images than 224 px",
        "a reference cache (--cache, ids, and selector cache fill)",
        "criterion='easy-reference'",
        "--device cuda",
    ):
        assert part in line


def test_connect_says_so_too_if_it_is_told_the_size(fake, said):
    _, address = fake(info(cache="/cache", micro_batch="4"))
    with Selector(address) as selector:
        selector.connect()
        assert not said()
        selector.connect(super_batch_size=2000)
    [line] = said()
    assert "but it has 120 s" in line
    assert "a reference cache (ids, and selector cache fill)" in line
    assert "a larger --micro-batch than 4" in line


def test_the_first_selections_get_the_time_that_the_sidecar_says_it_needs(fake, hurried, said):
    service, address = fake(info(), seconds=0.6)
    with hurried(address, filter_ratio=0.8) as selector:
        for _ in range(3):
            assert selector.select(**SAMPLES).fallback == ""
        assert selector.timeout >= module.PATIENCE * 0.6
    assert service.asked == 1
    assert not said(), "2 s of 8 need no word"


def test_a_slow_selection_that_fits_is_said_once(fake, said):
    _, address = fake(info(learner=0.2, reference=0.3))
    with Selector(address) as selector:
        for _ in range(2):
            selector.select(**SAMPLES)
    [line] = said()
    assert "takes the sidecar about 20 s" in line
    assert "it is given up to 80 s. It is faster with fewer candidates" in line


def test_a_sidecar_that_does_not_say_it_is_asked_once_and_given_twice_as_long_until_it_answers(fake, hurried):
    service, address = fake(None, seconds=2.0)
    with hurried(address) as selector:
        assert selector.select(**SAMPLES).fallback == "deadline_exceeded"
        selector.select(**SAMPLES)
        assert selector.timeout == 0.8
        service.seconds = 0.0
        selector._session.expectation._least = 10.0
        assert selector.select(**SAMPLES).fallback == ""
        selector.select(**SAMPLES)
        assert selector.timeout == 10.0
    assert service.asked == 1


def test_a_timeout_that_was_set_is_kept(fake, said):
    _, address = fake(info(), seconds=5.0)
    with Selector(address, timeout=0.5) as selector:
        started = time.perf_counter()
        assert selector.select(**SAMPLES).fallback == "deadline_exceeded"
        assert time.perf_counter() - started < 4, "it does not wait for the answer"
        assert selector.timeout == 0.5
    [line] = said()
    assert "set timeout=4" in line


def test_a_loaders_deadline_that_is_too_short_is_said_before_the_first_fallback(fake, said):
    _, address = fake(info())
    with Selector(address) as selector:
        for _ in SelectingLoader([SAMPLES] * 2, selector, deadline=1.0):
            assert "set the loader's deadline=4" in said()[0]
    assert len(said()) == 1


@pytest.mark.parametrize("settings", [{"policy": "uniform"}, {"criterion": "easy-reference"}])
def test_models_that_are_not_needed_are_not_counted(settings, fake, said):
    _, address = fake(info(learner=1.0, reference=0.01))
    with Selector(address, timeout=5.0, **settings) as selector:
        selector.select(**SAMPLES)
    assert not said()


def test_old_sidecars_and_other_forms_of_candidates_are_given_the_old_ten_seconds(fake, said):
    service, address = fake(info(learner=0.0, reference=0.0))
    with Selector(address) as selector:
        assert selector.timeout == 10.0
        selector.select(**SAMPLES)
        assert selector.timeout == 10.0
    service, address = fake(info(learner=1.0))
    with Selector(address, policy="independent", sub_batch_size=8) as selector:
        selector.select_losses(*np.zeros((2, B), np.float32))
        assert selector.timeout == 10.0
        assert service.asked == 0
    assert not said()


def test_a_sidecar_that_comes_later_is_asked_then(fake, said):
    port = free_port()
    with Selector(f"127.0.0.1:{port}", timeout=1.0) as selector:
        assert selector.select(**SAMPLES).fallback == "unavailable"
        assert not said()
        fake(info(), port=port)
        selector.connect()
        selector.select(**SAMPLES)
    assert len(said()) == 1


def test_the_asyncio_twin_does_the_same(fake, said):
    _, address = fake(info(learner=0.2, reference=0.3))

    async def run():
        async with AsyncSelector(address) as selector:
            await selector.connect(super_batch_size=400)
            assert "a selection of 400 candidates" in said()[0]
            await selector.select(**SAMPLES)
            return selector.timeout

    assert asyncio.run(run()) == 80.0


def test_a_sidecar_may_say_anything(said):
    nonsense = info(learner=float("nan"), reference=float("inf"), micro_batch="many", stall_seconds="-inf")
    one = pickle.loads(pickle.dumps(Expectation(Settings())))  # a spawned process gets a copy
    one.learn(nonsense)
    samples = pb.Selection(samples=pb.RawSamples())
    assert one.patience(samples, 100) == 10.0
    one.say(samples, 100, 1e-9, "timeout")
    one.learn(info(micro_batch="many", stall_seconds="x", peers="tcp://a:1"))
    one.say(samples, 100, 1e-9, "timeout")
    assert len(said()) == 1


def test_ranks_that_share_a_sidecar_share_its_time():
    samples, settings = pb.Selection(samples=pb.RawSamples()), Settings(group="g", world_size=4)
    alone, shared = Expectation(settings), Expectation(settings)
    alone.learn(info(peers="tcp://a:1"))
    shared.learn(info())
    assert shared.patience(samples, 100) == pytest.approx(4 * alone.patience(samples, 100))


def test_ids_of_a_webdataset_that_do_not_match_are_noticed(fake, said):
    """0 cached of all, while the cache holds samples of other names."""
    _, address = fake(info(0.0, 0.0, cached=1000, cache="/cache"))
    with Selector(address) as selector:
        for _ in range(5):
            selector.select(**SAMPLES, ids=IDS)
    [line] = said()
    assert "none of the ids of the first 3 selections is in the sidecar's reference cache" in line
    assert "'00007/000000001'" in line
    assert "SHARD/KEY" in line


@pytest.mark.parametrize(
    ("about", "cached", "ids", "settings"),
    [
        (info(0.0, 0.0, cached=0, cache="/cache"), 0, IDS, {}),  # a cold cache
        (info(0.0, 0.0, cached=9, cache="/cache"), 1, IDS, {}),
        (info(0.0, 0.0, cached=9, cache="/cache"), 0, None, {}),
        (info(0.0, 0.0, cached=9, cache="/cache"), 0, IDS, {"criterion": "hard-learner"}),
    ],
)
def test_ids_that_may_be_right_are_not_complained_about(about, cached, ids, settings, fake, said):
    _, address = fake(about, cached=cached)
    with Selector(address, **settings) as selector:
        for _ in range(5):
            selector.select(**SAMPLES, ids=ids)
    assert not said()
