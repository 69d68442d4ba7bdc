"""Selections by ids first: the sidecar says which candidates go on, and only those are read."""

import asyncio
import logging
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from selector_client import (
    AsyncSelector,
    ModelEmbeddings,
    RemoteError,
    Selector,
    Settings,
    Unreachable,
)
from selector_client.selecting.exclusions import Excluded, merged
from selector_proto.v1 import selector_pb2 as pb
from support.by_ids import (
    BATCH,
    COUNT,
    GOING,
    KNOWN,
    PICKS,
    PIXELS,
    SETTINGS,
    TOKENS,
    Passing,
    View,
    refuse,
    served,
    warmed,
)
from support.model import embed
from support.processes import free_port


@pytest.fixture(scope="module")
def warm(start_sidecars, bundles, tmp_path_factory):
    """A sidecar whose cache knows the first 100 samples."""
    with start_sidecars() as start:
        yield warmed(start, bundles, tmp_path_factory.mktemp("cache"), KNOWN)


def test_only_those_that_go_on_are_read_and_the_picks_are_those_of_one_call(warm):
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        for step in range(3):
            view, ids = View(20 * step), np.arange(BATCH) + 20 * step
            selector.resume(step)
            two = selector.select_by_ids(ids, view, step=step)
            selector.resume(step)
            one = selector.select(PIXELS[ids], TOKENS[ids], ids=ids, step=step)
            assert view.read == GOING
            assert two.indices.tolist() == one.indices.tolist()
            assert (two.prefiltered, two.not_examined) == (one.prefiltered, one.not_examined)
            assert two.prefiltered.left_out == BATCH - GOING
            assert two.cached_references == one.cached_references == BATCH
            np.testing.assert_allclose(two.scores, one.scores, rtol=1e-4, atol=1e-5)
        assert selector.statistics.requests == 6
        assert selector.statistics.candidates == 6 * BATCH


def test_unknown_ids_go_on_and_calls_are_counted_as_one(warm):
    ids, view = np.arange(BATCH) + COUNT - BATCH, View(COUNT - BATCH)
    with Selector(warm.address, on_error="raise", **SETTINGS | {"policy": "independent"}) as selector:
        found = selector.select_by_ids(ids, view)
        assert view.read == GOING + COUNT - KNOWN
        assert set(range(KNOWN, COUNT)) < set(view.calls[0])
        assert (found.prefiltered.known, found.prefiltered.unknown) == (BATCH - COUNT + KNOWN, COUNT - KNOWN)
        assert set(found.indices + COUNT - BATCH) <= set(view.calls[0])
        counts = selector.statistics
        assert (counts.requests, counts.candidates, counts.picks, selector.count) == (1, BATCH, PICKS, 1)


def test_the_ids_of_both_requests_belong_together_and_payloads_are_small(warm):
    passing = Passing(warm)
    with served(passing) as address, Selector(address, on_error="raise", **SETTINGS) as selector:
        selector.select_by_ids(np.arange(BATCH), View(), step=5)
    (first, shortlist), (second, select) = passing.asked
    assert (first, second) == ("Shortlist", "Select")
    assert select.request_id == f"{shortlist.request_id}.picks"
    assert shortlist.payload_bytes <= 8 * BATCH + 16
    assert select.samples.pixels.shape[0] == GOING
    assert shortlist.trainer_step == select.trainer_step == 5
    assert shortlist.seed == select.seed


def test_asyncio_too(warm):
    async def run():
        view = View(wait=0.3)
        async with AsyncSelector(warm.address, on_error="raise", **SETTINGS) as selector:
            beats = asyncio.create_task(heart())
            found = await selector.select_by_ids(np.arange(BATCH), view)
            beats.cancel()
            return found, view, selector.statistics.requests

    ticks = []

    async def heart():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.02)

    found, view, requests = asyncio.run(run())
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        wanted = selector.select_by_ids(np.arange(BATCH), View())
    assert found.indices.tolist() == wanted.indices.tolist()
    assert (view.read, requests) == (GOING, 1)
    assert len(ticks) > 5, "the view did not hold the loop up"

    async def falls():
        async with AsyncSelector(f"127.0.0.1:{free_port()}", timeout=2, **SETTINGS) as selector:
            return await selector.select_by_ids(np.arange(BATCH), View())

    assert asyncio.run(falls()).fallback == "unavailable"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
        (grpc.StatusCode.FAILED_PRECONDITION, "prefilter is 2.0; knows no loss before it encodes"),
    ],
)
def test_of_a_sidecar_that_makes_no_shortlists_all_are_read_and_that_is_said_once(warm, caplog, code, words):
    passing, view = Passing(warm, refuse(code, words)), View()
    with served(passing) as address, Selector(address, on_error="raise", **SETTINGS) as selector:
        with caplog.at_level(logging.WARNING):
            found = [selector.select_by_ids(np.arange(BATCH), view) for _ in range(3)]
    assert view.read == 3 * BATCH
    assert Counter(method for method, _ in passing.asked) == {"Shortlist": 1, "Select": 3}
    assert len([one for one in caplog.records if "makes no shortlists" in one.message]) == 1
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        wanted = [selector.select_by_ids(np.arange(BATCH), View()) for _ in range(3)]
    assert [one.indices.tolist() for one in found] == [one.indices.tolist() for one in wanted]
    assert found[0].prefiltered == wanted[0].prefiltered


def fallback(address, view, **options):
    with Selector(address, **SETTINGS | options) as selector:
        selector.resume(1)  # or the first selection's mistakes would raise
        selection = selector.select_by_ids(np.arange(BATCH), view)
        assert selector.statistics.requests == 1
        assert sum(selector.statistics.fallbacks.values()) == 1
        return selection


def uniform(address, **options):
    """What one call falls back to."""
    with Selector(address, **SETTINGS | options) as selector:
        selector.resume(1)
        return selector.select(PIXELS[:BATCH], TOKENS[:BATCH], ids=np.arange(BATCH))


def test_whichever_call_fails_the_fallback_is_uniform_over_all(warm):
    wanted = uniform(f"127.0.0.1:{free_port()}", timeout=2).indices.tolist()
    failing = {
        "shortlist": Passing(warm, refuse(grpc.StatusCode.INTERNAL)),
        "select": Passing(warm, None, refuse(grpc.StatusCode.INTERNAL)),
    }
    for servicer in failing.values():
        with served(servicer) as address:
            found = fallback(address, View())
        assert (found.fallback, found.indices.tolist()) == ("internal", wanted)
        assert found.scores is found.prefiltered is None
    assert fallback(f"127.0.0.1:{free_port()}", View(), timeout=2).indices.tolist() == wanted


def test_one_deadline_spans_both_calls_and_leaves_out_the_view(warm):
    def slowly(method):
        def answer(messages, context):
            time.sleep(0.6)
            return getattr(warm.stub, method)(iter(messages), timeout=30)

        return answer

    class Slow(Passing):
        def _pass(self, method, requests, context):
            return slowly(method)(list(requests), context)

    with served(Slow(warm)) as address:
        started = time.monotonic()
        found = fallback(address, View(), timeout=1.0)
        assert found.fallback == "deadline_exceeded"
        assert 0.9 < time.monotonic() - started < 3.0
        with Selector(address, on_error="raise", timeout=1.0, **SETTINGS) as selector:
            with pytest.raises(Unreachable, match="DEADLINE"):
                selector.select_by_ids(np.arange(BATCH), View())
            assert selector.select_by_ids(np.arange(BATCH), View(wait=1.5), timeout=10).fallback == ""
    with Selector(warm.address, on_error="raise", timeout=1.5, **SETTINGS) as selector:
        started = time.monotonic()
        selector.select_by_ids(np.arange(BATCH), View(wait=2.0))
        assert time.monotonic() - started > 2.0
        assert selector.statistics.seconds < 1.5


@pytest.mark.parametrize(
    ("indices", "more"),
    [
        ([], {}),
        (range(PICKS - 1), {}),
        ([0, 1, 2, 2, 3], {}),
        ([5, 4, 3, 2, 1], {}),
        ([*range(GOING), BATCH], {}),
        (range(GOING), {"exclusions": [pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[BATCH])]}),
        (range(GOING), {"prefiltered": pb.Prefiltered(left_out=BATCH - GOING + 1)}),
    ],
    ids=["none", "too few", "repeated", "falling", "out of range", "exclusions out of range", "more left out"],
)
def test_a_shortlist_that_is_none_is_not_used(warm, indices, more):
    reply = pb.ShortlistResponse(indices=indices, **more)
    with served(Passing(warm, lambda _: reply)) as address:
        assert fallback(address, View()).fallback == "wrong_answer"
        with Selector(address, on_error="raise", **SETTINGS) as selector, pytest.raises(RemoteError):
            selector.select_by_ids(np.arange(BATCH), View())


def lacking(bad):
    """No caption of the samples of these indices."""

    def change(indices, shown):
        texts = [None if index in bad else " ".join(f"w{word}" for word in TOKENS[index]) for index in indices.tolist()]
        return shown | {"texts": texts}

    return change


def test_bad_samples_of_the_shortlist_are_named_by_their_place_among_all(warm, caplog):
    view, ids = View(20), np.arange(BATCH) + 20
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        selector.select_by_ids(ids, view)
        bad = view.calls[0][3]
        with caplog.at_level(logging.WARNING):
            found = selector.select_by_ids(ids, View(20, lacking({bad})))
    assert {why: one.indices.tolist() for why, one in found.excluded.items()} == {"missing": [bad - 20]}
    assert bad - 20 not in found.indices
    assert f"id {bad} was left out (missing)" in caplog.text
    # Uniform picks later leave it out, too: it is known by its id.
    with served(Passing(warm, refuse(grpc.StatusCode.INTERNAL))) as address, Selector(address, **SETTINGS) as other:
        other.resume(1)
        uniform_ = other.select_by_ids(ids, View(20, lacking({bad})), sub_batch_size=BATCH - 1)
    assert uniform_.excluded["missing"].indices.tolist() == [bad - 20]
    assert bad - 20 not in uniform_.indices


def test_ids_that_are_missing_or_there_twice_are_left_out(warm):
    ids = [*range(BATCH - 2), None, 0]
    with Selector(warm.address, on_error="raise", **SETTINGS) as selector:
        found = selector.select_by_ids(ids, View())
        excluded = {why: one.indices.tolist() for why, one in found.excluded.items()}
        assert excluded == {"missing": [BATCH - 2], "repeated": [BATCH - 1]}
        assert found.prefiltered.known == BATCH - 2
    with Selector(warm.address, strict=True, **SETTINGS) as selector, pytest.raises(ValueError, match="more than once"):
        selector.select_by_ids([1, 1, *range(5, 40)], View())


def test_a_run_none_of_whose_first_candidates_can_be_used_stops(warm):
    with Selector(warm.address, **SETTINGS) as selector, pytest.raises(ValueError, match="no candidate can be used"):
        selector.select_by_ids(np.arange(BATCH), View(0, lacking(set(range(BATCH)))))


def test_the_views_own_mistakes_are_raised(warm):
    with Selector(warm.address, **SETTINGS) as selector:
        with pytest.raises(ZeroDivisionError):
            selector.select_by_ids(np.arange(BATCH), View(0, lambda *_: 1 // 0))
        with pytest.raises(ValueError, match="the view gives others"):
            selector.select_by_ids(np.arange(BATCH), View(0, lambda rows, shown: shown | {"ids": rows + 1}))
        with pytest.raises(ValueError, match="texts has 1 entries"):
            selector.select_by_ids(np.arange(BATCH), View(0, lambda _, shown: shown | {"texts": TOKENS[:1]}))
        same = selector.select_by_ids(np.arange(BATCH), View(0, lambda rows, shown: shown | {"ids": list(rows)}))
        assert same.fallback == ""


def test_references_that_the_trainer_keeps_are_sent_where_the_sidecar_has_no_cache(server, bundles):
    seen = embed(bundles.reference, PIXELS, TOKENS)
    fingerprint = server.info().reference.fingerprint

    def beside(rows, shown):
        return shown | {"reference": ModelEmbeddings(seen.image[rows], seen.text[rows], 20.0, -9.0, fingerprint)}

    view = View(0, beside)
    with Selector(server.address, on_error="raise", **SETTINGS) as selector:
        found = selector.select_by_ids(np.arange(BATCH), view)
    assert (view.read, found.prefiltered.left_out) == (BATCH, BATCH - GOING)


def test_settings_under_which_all_are_read():
    assert Settings(prefilter=2.0).shortlists
    assert not Settings().shortlists
    assert not Settings(prefilter=2.0, policy="uniform").shortlists
    assert not Settings(prefilter=2.0, group="g", world_size=2).shortlists


def test_without_a_prefilter_all_are_read_at_once(warm):
    passing, view = Passing(warm), View()
    with served(passing) as address, Selector(address, on_error="raise", sub_batch_size=PICKS) as selector:
        selector.select_by_ids(np.arange(BATCH), view)
    assert view.read == BATCH
    assert [method for method, _ in passing.asked] == ["Select"]


def test_exclusions_of_both_calls_together():
    one = {"missing": Excluded(np.array([5, 9]), "five"), "text": Excluded(np.array([1]), "one")}
    other = {"missing": Excluded(np.array([3, 7]), "three"), "format": Excluded(np.array([2]), "two")}
    found = merged(one, other)
    assert {why: (part.indices.tolist(), part.first) for why, part in found.items()} == {
        "missing": ([3, 5, 7, 9], "three"),
        "text": ([1], "one"),
        "format": ([2], "two"),
    }
