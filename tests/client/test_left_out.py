"""Bad samples are left out and not the batch: what a selector sends, reports, counts, says and remembers of them."""

import asyncio
import io
import logging
import pickle
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from PIL import Image
from selector_client import AsyncSelector, ModelEmbeddings, RemoteError, SelectingLoader, Selector
from selector_client.metrics import EXCLUSIONS
from selector_client.selecting import bad_samples
from selector_client.selecting.bad_samples import BadSamples
from selector_client.selecting.exclusions import REASONS, Excluded, uniform
from selector_client.selecting.selection import Selection
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.model import samples

from selector_server.errors import Exclusion

PIXELS, TOKENS = samples(20)
WORDS = [f"w{number}" for number in range(20)]
OFF = "localhost:1"
FILES = [b"no picture"] * 20


def with_gaps(*missing, texts=WORDS):
    return [None if index in missing else text for index, text in enumerate(texts)]


def leaving_out(**reasons):
    """A selection that leaves these out; each reason has its indices and what is wrong with the first."""
    return Selection(np.empty(0, np.int64), excluded={why: Excluded(*one) for why, one in reasons.items()})


def excluded(selection):
    return {reason: one.indices.tolist() for reason, one in selection.excluded.items()}


class Answers(rpc.SelectorServiceServicer):
    """Keeps what it is asked, and answers as `answer(selection)` says."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def Select(self, request_iterator, context):
        (first, *_) = list(request_iterator)
        self.asked.append(first.selection)
        found = self.answer(first.selection)
        if isinstance(found, str):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, found)
        return found


@contextmanager
def answering(answer):
    server, service = grpc.server(futures.ThreadPoolExecutor(2)), Answers(answer)
    rpc.add_SelectorServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        server.stop(0).wait()


def first_left(selection):
    """What a sidecar that leaves out the request's own exclusions may answer."""
    out = {index for one in selection.exclusions for index in one.indices}
    return pb.SelectResponse(
        indices=[index for index in range(20) if index not in out][:4], exclusions=selection.exclusions, not_examined=3
    )


# With a real sidecar


def test_what_the_sidecar_leaves_out_is_named_and_counted(server, caplog):
    with Selector(server.address, on_error="raise", seed=1, shared_memory=False) as selector:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                found = selector.select(PIXELS, with_gaps(3, 7), ids=[f"s{i % 18}" for i in range(20)])
                assert excluded(found) == {"missing": [3, 7], "repeated": [18, 19]}
                assert not set(found.indices.tolist()) & {3, 7, 18, 19}
                assert (len(found.indices), found.fallback) == (4, "")
                assert found.excluded["missing"].first == "texts[3] is None; every candidate needs a text"
        assert selector.statistics.excluded == {"missing": 4, "repeated": 4}
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in said] == [
        "id 's3' was left out (missing)",
        "id 's0' was left out (repeated)",
    ]


def test_broken_files_leave_the_others_to_compete(server):
    files = []
    for pixels in PIXELS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    files[5], files[9] = b"GIF87a and no more", files[9][:40]
    with Selector(server.address, on_error="raise") as selector:
        found = selector.select(files, TOKENS)
    assert sorted(index for rows in excluded(found).values() for index in rows) == [5, 9]
    assert not set(found.indices.tolist()) & {5, 9}


def test_embeddings_and_losses_that_are_not_finite_are_left_out(server):
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 20, 8), dtype=np.float32)
    image[4, 2], text[11] = np.nan, np.inf
    model = ModelEmbeddings(image, text, 10.0)
    losses = rng.random(20, dtype=np.float32)
    losses[13] = np.nan
    with Selector(server.address, on_error="raise") as selector:
        assert excluded(selector.select_embeddings(model, model)) == {"value": [4, 11]}
    for address, fallback in ((server.address, ""), (OFF, "unavailable")):
        with Selector(address, policy="independent") as selector:
            found = selector.select_losses(losses, losses)
            assert (excluded(found), found.fallback, 13 in found.indices) == ({"value": [13]}, fallback, False)
    with Selector(OFF, sub_batch_size=18) as selector:
        assert excluded(found := selector.select_embeddings(model, model)) == {"value": [4, 11]}
        assert not set(found.indices.tolist()) & {4, 11}


def test_strict_refuses(server):
    with Selector(server.address, strict=True) as selector:
        with pytest.raises(TypeError, match=r"texts\[3\] is None"):
            selector.select(PIXELS, with_gaps(3))
        with pytest.raises(ValueError, match="ids has x more than once"):
            selector.select(PIXELS, TOKENS, ids=["x"] * 20)
        with pytest.raises(RemoteError, match=r"INVALID_ARGUMENT: samples.encoded_images\[0\]"):
            selector.select(FILES, TOKENS)


def test_asyncio_does_the_same(server):
    async def run():
        async with AsyncSelector(server.address, on_error="raise") as selector:
            await selector.connect()
            assert selector._session.sidecar.pixels == (8, 8, 3)
            return await selector.select(PIXELS, with_gaps(3), sub_batch_size=7), selector.statistics

    found, statistics = asyncio.run(run())
    assert (excluded(found), len(found.indices), statistics.excluded) == ({"missing": [3]}, 7, {"missing": 1})


def test_several_captions_are_drawn_again_as_before(server):
    several = [[f"{text} w1", f"{text} w2"] for text in WORDS]

    def run(address, **settings):
        with Selector(address, seed=5, **settings) as selector:
            return [selector.select(PIXELS, several) for _ in range(3)]

    first, again, absent = run(server.address), run(server.address), run(OFF)
    assert [one.captions.tolist() for one in first] == [one.captions.tolist() for one in again]
    assert {len(one.captions) for one in (*first, *absent)} == {4}
    assert len({tuple(one.captions.tolist()) for one in first}) > 1
    with Selector(OFF) as selector:
        assert selector.select(PIXELS, WORDS).captions is None


def test_limits_are_learnt_from_the_sidecar_by_connecting(server):
    with Selector(server.address) as selector:
        assert selector._session.sidecar.max_text_bytes is None
        info = selector.connect()
        assert selector._session.sidecar.max_text_bytes == info.limits.max_text_bytes
        long = "w" * (info.limits.max_text_bytes + 1)
        found = selector.select(PIXELS, [*WORDS[:19], long])
        assert excluded(found) == {"too_large": [19]}
        assert "(max_text_bytes)" in found.excluded["too_large"].first, "it was not sent"


def test_the_reasons_are_the_contracts_and_the_servers():
    assert list(EXCLUSIONS) == list(REASONS) == [one.value for one in Exclusion]


# What is sent


def test_a_request_says_what_is_to_happen_with_bad_samples():
    with answering(first_left) as (address, service):
        with Selector(address, max_excluded_share=0.25) as selector:
            found = selector.select(PIXELS, with_gaps(3))
            assert (found.not_examined, selector.statistics.not_examined) == (3, 3)
        with Selector(address, strict=True) as selector:
            selector.select(PIXELS, WORDS)
    new, old = service.asked
    assert (new.bad_samples, new.max_excluded_share) == (pb.BAD_SAMPLES_EXCLUDE, 0.25)
    assert [(one.reason, list(one.indices)) for one in new.exclusions] == [(pb.EXCLUSION_REASON_MISSING, [3])]
    assert (old.bad_samples, old.HasField("max_excluded_share"), len(old.exclusions)) == (0, False, 0)


def test_an_answer_that_picks_what_it_left_out_is_not_used():
    def answer(selection):
        return pb.SelectResponse(indices=[0, 1, 2, 3], exclusions=selection.exclusions)

    with answering(answer) as (address, _), Selector(address) as selector:
        found = selector.select(PIXELS, with_gaps(3))
    assert (found.fallback, 3 in found.indices, excluded(found)) == ("wrong_answer", False, {"missing": [3]})


@pytest.mark.parametrize("indices", [[[20]], [[2**32 - 1]], [[5, 5]], [[5], [6, 5]]])
def test_an_answer_that_leaves_out_what_cannot_be_is_not_used(indices):
    reasons = (pb.EXCLUSION_REASON_FORMAT, pb.EXCLUSION_REASON_TEXT)
    exclusions = [pb.Exclusion(reason=reason, indices=rows) for reason, rows in zip(reasons, indices, strict=False)]
    answer = pb.SelectResponse(indices=[0, 1, 2, 3], exclusions=exclusions)
    with answering(lambda _: answer) as (address, _), Selector(address) as selector:
        assert selector.select(PIXELS, WORDS, ids=WORDS).fallback == "wrong_answer"


def test_reasons_of_a_newer_sidecar_are_one_reason():
    exclusions = [pb.Exclusion(reason=reason, indices=[reason], first=f"as {reason}") for reason in (19, 18)]
    answer = pb.SelectResponse(indices=[0, 1, 2, 3], exclusions=exclusions)
    with answering(lambda _: answer) as (address, _), Selector(address) as selector:
        found = selector.select(PIXELS, WORDS)
    assert (excluded(found), found.excluded["unknown"].first) == ({"unknown": [18, 19]}, "as 19")


@pytest.mark.parametrize("picks", [[0, 1, 2, 4], [0, 1, 2, 3]])
def test_a_sidecar_of_version_0_1_that_knows_no_exclusions(picks, caplog):
    """It looks at what stands in a bad sample's place, and may even pick it."""
    with answering(lambda selection: pb.SelectResponse(indices=picks)) as (address, _), Selector(address) as selector:
        found = selector.select(PIXELS, with_gaps(3))
    assert excluded(found) == {"missing": [3]}
    assert 3 not in found.indices
    assert found.fallback == ("wrong_answer" if 3 in picks else "")
    assert ("it is of version 0.1" in caplog.text) == (3 in picks)


@pytest.mark.parametrize(
    "words",
    [
        "samples.encoded_images[5] is 18 bytes; must be a JPEG, PNG, WEBP file: cannot identify image file",
        "samples.strings[5] is 90 tokens; at most 64 tokens",
        "sample_ids[7] is 'x'; candidate 0 has the same; every candidate needs an id of its own",
        "losses.learner is nan at [13]; every value must be finite",
    ],
)
def test_a_sidecar_of_version_0_1_that_refuses_all_for_one_sample_ends_no_trainer(words):
    """Not even with the very first request, as after a restart in the middle of a run."""
    with answering(lambda _: words) as (address, _), Selector(address) as selector:
        assert selector.select(PIXELS, TOKENS).fallback == "invalid_argument"
        with Selector(address, strict=True) as strict, pytest.raises(RemoteError):
            strict.select(PIXELS, TOKENS)
    with answering(lambda _: "samples.pixels.shape is [20, 8, 8, 3]; must be [B, 4, 4, 3]") as (address, _):
        with Selector(address) as selector, pytest.raises(RemoteError, match="must be"):
            selector.select(PIXELS, TOKENS)


# Uniform sub-batches


def test_the_clients_own_picks_leave_out_what_it_sees_is_bad(monkeypatch):
    monkeypatch.setenv("SELECTOR_OFF", "1")
    seen = []
    with Selector(OFF, seed=3, sub_batch_size=10) as selector:
        for _ in range(200):
            found = selector.select(PIXELS, with_gaps(3, 5), ids=[*range(18), 2, 2])
            assert excluded(found) == {"missing": [3, 5], "repeated": [18, 19]}
            seen += found.indices.tolist()
    counts = np.bincount(seen, minlength=20)
    assert not counts[[3, 5, 18, 19]].any()
    assert counts[[i for i in range(18) if i not in (3, 5)]].min() > 80, "125 expected of each"


def test_picks_of_whole_super_batches_are_those_of_version_0_1():
    rng = np.random.default_rng(7)
    assert uniform(50, 10, 7, ()).tolist() == rng.choice(50, 10, replace=False).tolist()


def test_ids_that_were_left_out_before_are_left_out_by_the_clients_own_picks():
    """The sidecar found them to be bad; then it is gone."""
    names = [f"s{index}" for index in range(20)]

    def answer(selection):
        exclusion = pb.Exclusion(reason=pb.EXCLUSION_REASON_UNREADABLE, indices=[2, 6, 9], first="cut off")
        return pb.SelectResponse(indices=[0, 1, 3, 4], exclusions=[exclusion])

    with answering(answer) as (address, _), Selector(address, sub_batch_size=4) as selector:
        assert excluded(selector.select(PIXELS, TOKENS, ids=names)) == {"unreadable": [2, 6, 9]}
        selector._session.off = True
        copy = pickle.loads(pickle.dumps(selector))
        for one in (selector, copy):
            found = one.select(PIXELS, TOKENS, ids=names[::-1], sub_batch_size=17)
            assert excluded(found) == {"unreadable": [10, 13, 17]}
            assert not set(found.indices.tolist()) & {10, 13, 17}
        assert excluded(selector.select(PIXELS, TOKENS)) == {}, "without ids nobody knows them"


def test_the_memory_of_ids_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(bad_samples, "REMEMBERED", 3)
    memory = BadSamples(1.0)
    for name in "abc":
        memory.saw(leaving_out(unreadable=(np.array([0]), "cut off")), 1, [name])
    assert memory.known(["a"]) == {0: "unreadable"}, "and a was met last"
    memory.saw(leaving_out(text=(np.array([1]), "half"), repeated=(np.array([0]), "")), 2, ["r", "d"])
    assert memory.known(list("abcdr")) == {0: "unreadable", 2: "unreadable", 3: "text"}


def test_too_few_usable_candidates_are_not_sent_and_b_stays_b(caplog):
    texts = with_gaps(*range(4, 20))
    with answering(first_left) as (address, service), Selector(address, sub_batch_size=5) as selector:
        selector.resume(1)
        found = selector.select(PIXELS, texts)
        assert service.asked == []
    assert (found.fallback, len(found.indices)) == ("too_few_usable", 5)
    assert set(found.indices.tolist()) > {0, 1, 2, 3}
    assert "4 of 20 candidates can be used; 5 must be picked: texts[4] is None" in caplog.text


def test_bad_picks_of_a_uniform_sub_batch_come_last_and_are_named_and_warned_of_once(caplog):
    """There is no sidecar, and all but four captions are missing."""
    texts = with_gaps(*range(4, 20))
    with Selector(OFF, sub_batch_size=7, seed=1) as selector, caplog.at_level(logging.WARNING):
        selector.resume(1)
        for _ in range(5):
            found = selector.select(PIXELS, texts, ids=WORDS)
            assert sorted(found.indices[:4].tolist()) == [0, 1, 2, 3]
            assert found.unusable.tolist() == found.indices[4:].tolist()
            assert set(found.unusable.tolist()) < set(found.excluded["missing"].indices.tolist())
        enough = selector.select(PIXELS, WORDS, ids=[*range(20)])
        assert (len(enough.indices), enough.unusable.tolist()) == (7, [])
    said = [record.getMessage() for record in caplog.records]
    [warning] = [line for line in said if "picks" in line]
    assert warning.startswith("3 of the 7 picks of a uniform sub-batch cannot be used: only 4 of 20 candidates can")
    [first] = [line for line in said if "(missing)" in line]
    assert first.startswith(("id 'w4' was left out (missing)", "id 'w4' was taken for want of others (missing)"))


@pytest.mark.parametrize(("picks", "fate"), [([0, 4], "was taken for want of others"), ([0, 5], "was left out")])
def test_what_is_said_of_a_bad_candidate_is_what_became_of_it(picks, fate, caplog):
    missing = {"missing": Excluded(np.array([4, 5]), "texts[4] is None")}
    with caplog.at_level(logging.WARNING):
        BadSamples(1.0).saw(Selection(np.array(picks), fallback="off", excluded=missing), 6, list("abcdef"))
    assert f"id 'e' {fate} (missing): texts[4] is None" in caplog.text


def test_a_job_that_was_set_up_wrongly_stops_with_the_reason_and_a_resumed_one_goes_on():
    with Selector(OFF) as selector:
        with pytest.raises(
            ValueError, match=r"no candidate can be used: images\[0\] is a str; must be the file's bytes"
        ):
            selector.select([f"{index}.jpg" for index in range(20)], TOKENS)
        selector.resume(1000)
        assert selector.select([None] * 20, TOKENS).fallback != ""


def test_a_job_whose_candidates_the_sidecar_cannot_use_stops_with_the_reason(server):
    """Such as images in a format that is not served; but not one that is resumed, or that has selected before."""
    with Selector(server.address) as selector:
        with pytest.raises(
            RemoteError, match=r"candidates left is 0 of 20; 4 must be picked; excluded are 20 (format|unreadable)"
        ):
            selector.select(FILES, TOKENS)
        assert selector.select(FILES, TOKENS).fallback == "failed_precondition"
    with Selector(server.address) as selector:
        selector.resume(1000)
        assert selector.select(FILES, TOKENS).fallback == "failed_precondition"


# What is said


def test_a_large_share_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        memory = BadSamples(0.05)
        for step in range(30):
            memory.saw(leaving_out(missing=(np.arange(step % 5), "none")), 40, [])
    warnings = [record.getMessage() for record in caplog.records if "warn_excluded_share" in record.getMessage()]
    assert warnings == []
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            memory.saw(leaving_out(missing=(np.arange(4), "none")), 40, [])
    (warning,) = [record.getMessage() for record in caplog.records if "warn_excluded_share" in record.getMessage()]
    assert warning.startswith("5.")
    assert "more than warn_excluded_share, 5 %; `statistics.excluded` counts them" in warning


def test_a_loader_counts_and_shows_what_was_left_out(server):
    data = [{"images": PIXELS, "texts": with_gaps(3, 7)} for _ in range(3)]
    with Selector(server.address, on_error="raise") as selector:
        loader = SelectingLoader(data, selector)
        batches = list(loader)
    assert [None in batch["texts"] for batch in batches] == [False] * 3
    assert loader.progress.excluded == {"missing": 6}
    assert "10.0% of the candidates left out" in str(loader.progress)
