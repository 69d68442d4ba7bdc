"""Work that nobody waits for any more ends at its next step: the selection itself, on its thread, without a server."""

import asyncio
import threading
import time
import weakref
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from support.model import POLICIES, WIDTH, plan, samples
from support.processes import eventually

from selector_server.encoding import bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.encoding.reference_cache import ReferenceCache
from selector_server.engine.candidates.embeddings import Embeddings, ModelEmbeddings
from selector_server.engine.candidates.preparation import ModelInput
from selector_server.engine.candidates.samples import PreparedSamples
from selector_server.engine.models import Models, SamplerSettings
from selector_server.engine.request import Request
from selector_server.engine.scorer import Scorer
from selector_server.engine.task import OwnLosses, Rule, ServedWeights, Task
from selector_server.engine.worker import Worker
from selector_server.errors import Abandoned, NotPossible, TooLate, Unavailable
from selector_server.sampling import Criterion, Loss, Needs, Picks, threads
from selector_server.sampling.locality import Locality, near_duplicates, neighbours
from selector_server.sampling.quality import assess
from selector_server.telemetry.quality_metrics import NATS
from selector_server.weights.dating import Dated
from selector_server.weights.freshness import Freshness
from selector_server.weights.versions import Version, Versions


class Leaves(Request):
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


def task(candidates, chunks):
    kind = {"policy": POLICIES["joint"], "rule": Rule(Criterion.LEARNABILITY, Criterion.LEARNABILITY, Loss.SIGMOID)}
    return Task(candidates, plan=plan(candidates.size // 2, chunks), **kind)


def embedded(size=400, chunks=100) -> Task:
    sides = np.random.default_rng(0).standard_normal((2, 2, size, 8)).astype(np.float32)
    return task(Embeddings(*(ModelEmbeddings(*side, 10.0, -10.0) for side in sides)), chunks)


def scorer(learner=None, reference=None, store=None) -> Scorer:
    return Scorer(Models(torch.device("cpu"), learner, reference, store, None, SamplerSettings()))


def test_a_draw_ends_after_the_round_in_which_its_caller_leaves():
    request = Leaves("sample", 5)
    with pytest.raises(Abandoned, match="at sample"):
        scorer().select(embedded(), request)
    assert request.asked == 5, "of 100 rounds"
    result = scorer().select(embedded(), Request())
    assert len(result.indices) == 200
    for array in (result.indices, OwnLosses(reference=np.zeros(2)).reference):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.fixture(scope="module")
def models(bundles):
    device = Device("cpu")
    learner, reference = (
        Model(bundle.load(path, role), device, 2)
        for path, role in ((bundles.learner_path, "learner"), (bundles.reference_path, "reference"))
    )
    store = Versions(Version(0, 0, Dated(time.monotonic()), learner.bundled_weights()))
    return learner, reference, store


def encoded(size=20, ids=()) -> Task:
    pixels, tokens = samples(size)
    inputs = ModelInput(pixels, tokens.astype(np.int64))
    return task(PreparedSamples(size, [*ids], inputs, inputs), 2)


def test_a_result_tells_what_scored_and_how_it_differs_from_uniform_picks(models):
    _, _, store = models
    one = replace(encoded(), freshness=Freshness(trainer_step=3), return_losses=True)
    result = scorer(*models).select(one, Request())
    assert (result.policy, result.plan) == ("joint", one.plan)
    assert result.weights == ServedWeights(0, 0, pytest.approx(store.current.age_seconds(), abs=5), 3, False)
    assert result.objective > result.objective_uniform
    scores, picks = scorer(*models).score(one, Request())[0], torch.from_numpy(result.indices.copy())
    assert result.quality == assess(scores.own(), picks, one.plan, NATS)
    for found, losses in zip((result.losses.learner, result.losses.reference), scores.own_losses(), strict=True):
        np.testing.assert_array_equal(found, losses[picks])
    image = scores.reference.image
    beside = neighbours(image, torch.arange(20), 20)
    assert result.locality == Locality(beside.adjacent, beside.random, near_duplicates(image, picks))


def test_arrays_go_to_the_device_and_pairs_are_scored_as_the_server_is_set():
    settings = SamplerSettings(tile_bytes=1 << 20, fused=True)
    models = Models(torch.device("cpu"), None, None, None, None, settings)
    one = embedded(4, 1)
    sides = (models.embedded(one.candidates.learner), models.embedded(one.candidates.reference))
    scores = models.pairs(one, *sides, Request())
    assert (scores.tile_bytes, scores.fused) == (1 << 20, True)
    models.device = torch.device("meta")  # which every machine has
    assert models.on_device(np.zeros(2, np.float32)).device == models.device


@dataclass(frozen=True)
class Policy:
    """One that picks what it is told."""

    picks: list
    name: str = "told"
    needs: Needs = Needs.NOTHING
    knows_open: bool = False

    def pick(self, scores, plan):
        return Picks(torch.tensor(self.picks), torch.zeros(len(self.picks)), 0.0)


@pytest.mark.parametrize(
    ("picks", "ranks", "kind", "named"),
    [
        ([0, 0], 1, RuntimeError, "policy 'told' did not pick 2 different of 4"),
        ([0], 1, RuntimeError, "did not pick"),
        ([0, 4], 1, RuntimeError, "did not pick"),
        ([-1, 0], 1, RuntimeError, "did not pick"),
        ([0, 1], 2, NotPossible, "policy is 'told'; does not take equally many candidates of each of 2 ranks"),
    ],
)
def test_what_a_policy_may_not_pick(picks, ranks, kind, named):
    one = replace(embedded(4, 1), policy=Policy(picks))
    with pytest.raises(kind, match=named):
        scorer().select(replace(one, plan=replace(one.plan, ranks=ranks)), Request())


def test_references_that_the_cache_knows_are_not_computed_again(models, tmp_path):
    learner, reference, store = models
    cache = ReferenceCache(tmp_path, "tiny", "ab" * 32, WIDTH, 1 << 24)
    select = Scorer(Models(torch.device("cpu"), learner, reference, store, cache, SamplerSettings()))
    (pixels, tokens), ids = samples(20), [b"s%d" % i for i in range(20)]
    whole = ModelInput(pixels, tokens.astype(np.int64))

    def prepared(rows):
        """Of these candidates, all that the cache lacks are brought to the reference."""
        found = cache.find([ids[row] for row in rows])
        lacking = rows[~found.known]
        given = whole.at(lacking) if len(lacking) else None
        return task(PreparedSamples(len(rows), [ids[row] for row in rows], whole.at(rows), given, found), 2)

    def ask(rows):
        return select.select(prepared(rows), Request())

    half, everything = np.arange(10), np.arange(20)
    first = ask(half)
    eventually(lambda: cache.find(ids).known.sum() == 10)
    second = ask(everything)
    eventually(lambda: cache.find(ids).known.all())
    third = ask(everything)
    known = prepared(everything)
    cache.close()
    assert select.least_seconds(known, found=True)("preprocess") > 0
    assert select.least_seconds(known, found=False)("preprocess") == 0, "what the cache lacks is not known before"
    assert [(one.cached, one.uncached) for one in (first, second, third)] == [(0, 10), (10, 10), (20, 0)]
    assert second.indices.tolist() == third.indices.tolist()
    assert second.scores.tolist() == third.scores.tolist()
    without = scorer(*models).select(task(PreparedSamples(20, [], whole, whole), 2), Request())
    np.testing.assert_allclose(np.sort(third.scores), np.sort(without.scores), atol=0.05)


# Two towers of ten micro-batches, and a look before them, for each model.
@pytest.mark.parametrize("times", [1, 3, 15, 22, 30, 40])
def test_encoding_ends_at_the_micro_batch_at_which_its_caller_leaves(models, times, monkeypatch):
    monkeypatch.setattr(threads, "_threads", threads.Threads(1))  # others may have begun one more
    request = Leaves("encode", times)
    with pytest.raises(Abandoned, match="at encode"):
        scorer(*models).select(encoded(), request)
    assert request.asked == times


@pytest.mark.parametrize("ids", [[], [b"s%d" % i for i in range(20)]], ids=["nameless", "named"])
def test_what_cannot_be_in_time_is_not_begun(models, ids):
    select, served = scorer(*models), Request()
    select.select(encoded(20, ids), served)
    least = sum(getattr(served.stages, name) for name in ("preprocess", "encode_learner", "encode_reference", "sample"))

    def begin(task, seconds, stage="preprocess"):
        request = Request(seconds)
        request.least = select.least_seconds(task, found=False)
        request.begin(stage, stage)
        return request

    with pytest.raises(TooLate, match=r"from preprocess on, at least 0\.\d{3} s are needed"):
        begin(encoded(20, ids), least * 0.9)
    begin(encoded(20, ids), least + 60)
    begin(encoded(10, ids[:10]), 0.001)  # nothing is known of a smaller one
    other = encoded(20, ids)
    begin(replace(other, rule=replace(other.rule, prefilter=2.0)), 0.001)  # nor of one by another rule
    assert begin(encoded(20, ids), 60, "sample").stage == "sample"


# The worker


class Array:
    """A request's array."""


async def settled(worker, work):
    try:
        return await worker.run(work, Request())
    except Exception as error:
        return error


def worker_of(probe=lambda: None):
    worker = Worker(60, probe)
    worker.start()
    return worker


def test_a_request_dropped_from_the_queue_leaves_no_array_behind():
    go, running = threading.Event(), threading.Event()

    def hold(array):
        running.set()
        go.wait(20)

    async def main():
        worker = worker_of()
        first = asyncio.create_task(worker.run(partial(hold, Array()), Request()))
        await asyncio.to_thread(running.wait, 10)
        array, request = Array(), Request()
        gone = weakref.ref(array)
        second = asyncio.create_task(worker.run(partial(hold, array), request))
        await asyncio.sleep(0.01)
        del array
        second.cancel()
        await asyncio.wait([second])
        assert request.gone
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

    def fail():
        raise ZeroDivisionError

    def lose():
        lost.append(True)
        raise RuntimeError("CUDA error")

    async def main():
        worker = worker_of(probe=probe)
        assert isinstance(await settled(worker, fail), ZeroDivisionError)
        assert worker.healthy, "a failure of one request"
        outcomes = await asyncio.gather(
            *(settled(worker, work) for work in (lose, fail, fail)),
        )
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
        assert not worker.healthy
        assert not worker.alive
        with pytest.raises(Unavailable):
            await worker.run(fail, Request())
        await asyncio.to_thread(eventually, lambda: not worker._thread.is_alive())

    asyncio.run(main())
