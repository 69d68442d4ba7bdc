"""Bad samples and what else a request meets: bounds on their share, the reference cache, ranks that select as one."""

import numpy as np
import pytest
import torch
from selector_proto.v1 import selector_pb2 as pb
from selector_tools.export.bundle_writer import export_reference
from support.excluding import COUNT, EXCLUDE, FILES, IDS, PIXELS, TEXTS, encoded, excluded, exclusion, opened
from support.model import POLICIES, TEXT, TOKENS, WORDS, TwoTower, embed, plan, samples, source
from support.processes import eventually
from support.ranks import Asking, all_embedded, as_ranks, assert_refused_alike, balanced, models_of, shares, together
from support.refusals import PRECONDITION
from support.wire import embeddings, error_info, raw, some_losses

from selector_server.encoding import bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.encoding.reference_cache import stat
from selector_server.sampling import Criterion, Embedded, PairScores

# Bounds


def test_a_larger_share_than_is_accepted_is_refused_with_the_counts(server):
    texts = dict.fromkeys(range(15), b"\xff")
    files = dict.fromkeys(range(15, 21), b"")
    error = server.refuse(encoded(files, texts))
    assert error.code().name == PRECONDITION
    info = error_info(error)
    assert info["reason"] == "NOT_POSSIBLE"
    assert (info["field"], info["value"]) == ("excluded candidates", "21 of 40")
    assert info["limit"].startswith(
        "max_excluded_share is 0.5, at most 20 of them; excluded are 15 text (candidate 0: "
    )
    assert "6 missing (candidate 15: samples.encoded_images[15] is 0 bytes" in info["limit"]
    assert len(server.select(encoded(files, texts, max_excluded_share=0.6)).indices) == 8
    assert len(server.select(encoded(None, dict.fromkeys(range(20), b"\xff"))).indices) == 8, "at most half is no more"
    assert server.refuse(encoded(None, texts, max_excluded_share=0.25)).code().name == PRECONDITION


def test_b_stays_what_it_was_as_long_as_so_many_are_left(server):
    texts = dict.fromkeys(range(12), b"\xff")
    assert len(server.select(encoded(None, texts, sub_batch_size=28)).indices) == 28
    error = server.refuse(encoded(None, texts, sub_batch_size=29))
    assert error.code().name == PRECONDITION
    assert error.details().startswith(
        "candidates left is 28 of 40; 29 must be picked; excluded are 12 text (candidate 0:"
    )
    everything = server.refuse(encoded(None, dict.fromkeys(range(COUNT), b"\xff"), max_excluded_share=1.0))
    assert everything.details().startswith("candidates left is 0 of 40; 8 must be picked")


def test_a_refusal_fits_into_a_status_whatever_was_said(plain_server):
    reasons = [pb.ExclusionReason.Name(code).removeprefix("EXCLUSION_REASON_") for code in range(1, 8)]
    exclusions = [exclusion(reason, [i, i + 10], "🎈" * 300) for i, reason in enumerate(reasons)]
    error = plain_server.refuse(some_losses(bad_samples=EXCLUDE, exclusions=exclusions, max_excluded_share=0.5))
    assert error.details().startswith("excluded candidates is 14 of 20; ")
    assert all(f"2 {reason.lower()} (candidate " in error.details() for reason in reasons)


# The reference cache, and what was not looked at


def with_ids(request, first=100):
    request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(first, first + COUNT)))
    return request


def test_the_cache_is_neither_asked_nor_filled_for_what_is_left_out(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    bad = {3: b"broken", 20: FILES[20][:50]}
    request = {"exclusions": [exclusion("MISSING", [7])]}
    reply = server.select(with_ids(encoded(bad, **request)))
    assert reply.cached_references == 0
    eventually(lambda: server.select(with_ids(encoded(bad, **request))).cached_references == COUNT - 3)
    assert stat(tmp_path / "cache").references[0].entries == COUNT - 3
    again = server.select(with_ids(encoded(bad, **request)))
    assert again.not_examined == 0, "the learner looks at all"
    assert list(again.indices) == list(reply.indices)
    whole = server.select(with_ids(encoded()))
    assert whole.cached_references == COUNT - 3
    eventually(lambda: server.select(with_ids(encoded())).cached_references == COUNT)


def test_what_only_the_cache_knows_is_not_examined(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    easy = {"criterion": pb.CRITERION_EASY_REFERENCE}
    first = server.select(with_ids(encoded({3: b"broken"}, **easy)))
    assert (first.not_examined, excluded(first)) == (0, {"FORMAT": [3]})
    eventually(lambda: server.select(with_ids(encoded({3: b"broken"}, **easy))).not_examined == COUNT - 1)
    before = server.metrics()("selector_not_examined_total")
    reply = server.select(with_ids(encoded({3: b"broken", 8: b"broken too"}, {9: b"\xff"}, **easy)))
    assert excluded(reply) == {"FORMAT": [3]}, "nobody looks at what is known"
    assert reply.not_examined == COUNT - 1
    assert server.metrics()("selector_not_examined_total") == before + COUNT - 1
    checked = server.select(with_ids(encoded({3: b"broken", 8: b"broken too"})))
    assert excluded(checked) == {"FORMAT": [3, 8]}
    assert checked.cached_references == COUNT - 2


def test_what_only_the_reference_refuses_is_left_out_for_both(sidecar, bundles, tmp_path):
    text = TEXT.model_copy(update={"max_tokens": TOKENS - 2, "too_long": "refuse"})
    model = TwoTower(5).eval()
    export_reference(source("short", model, bundles.tokenizer, text=text), tmp_path / "short")
    server = sidecar(bundles.flags | {"reference": tmp_path / "short"})
    ids = IDS.copy()
    ids[:, TOKENS - 2 :] = 0
    texts = {i: " ".join(WORDS[t] for t in row if t).encode() for i, row in enumerate(ids)}
    texts[6] = TEXTS[6]
    texts[7] = b"\xff"
    reply = server.select(encoded(None, texts))
    assert excluded(reply) == {"TOO_LARGE": [6], "TEXT": [7]}
    learner = embed(bundles.learner, PIXELS, ids)
    with torch.no_grad():
        images = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
        short = torch.from_numpy(ids[:, : TOKENS - 2].astype(np.int64))
        reference = Embedded.normalise(model.encode_image(images), model.encode_text(short), 10.0, -10.0)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference, open=opened(COUNT, [6, 7]))
    assert list(reply.indices) == POLICIES["joint"].pick(scores, plan(8, 8, seed=5)).indices.tolist()


def test_uniform_without_models_leaves_out_what_can_be_seen(plain_server):
    request = encoded({3: b"broken", 11: FILES[2]}, {11: TEXTS[2]}, policy="uniform")
    assert excluded(plain_server.select(request)) == {"REPEATED": [11]}


@pytest.mark.parametrize("micro_batch", [3, 64])
def test_some_rows_are_encoded_as_among_all(bundles, micro_batch):
    model = Model(bundle.load(bundles.learner_path, "learner"), Device("cpu"), micro_batch)
    weights, rows = model.bundled_weights(), np.array([0, 3, 4, 11, 39])
    whole = model.encode(PIXELS, IDS.astype(np.int64), weights)
    some = model.encode(PIXELS, IDS.astype(np.int64), weights, rows=rows)
    torch.testing.assert_close(some.image, whole.image[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(some.text, whole.text[rows], rtol=0, atol=1e-6)


# Ranks


def test_each_rank_hears_of_its_own(patient):
    models = models_of(2, COUNT)
    models[0][0][0][[3, 4]] = np.nan
    models[1][1][1][0] = np.inf
    requests = [embeddings(*m, seed=7 + r, chunks=3, gain=5.0, bad_samples=EXCLUDE) for r, m in enumerate(models)]
    replies = together(patient, requests)
    assert [excluded(reply) for reply in replies] == [{"VALUE": [3, 4]}, {"VALUE": [0]}]
    scores = all_embedded(models_of(2, COUNT)).with_open(opened(2 * COUNT, [3, 4, COUNT]))
    want = POLICIES["joint"].pick(scores, balanced(8, 3, 2, 7, 5.0))
    for reply, (indices, values) in zip(replies, shares(want, COUNT, 2), strict=True):
        assert list(reply.indices) == indices
        np.testing.assert_allclose(reply.scores, values, rtol=1e-4, atol=1e-4)


def test_samples_of_ranks(server, bundles):
    parts = [samples(30, seed) for seed in range(2)]
    requests = [raw(*part, seed=5, gain=3.0, bad_samples=EXCLUDE) for part in parts]
    requests[1].set(exclusions=[exclusion("MISSING", [0, 29])])
    requests[0].set(exclusions=[exclusion("TEXT", [2])])
    replies = together(server, requests)
    assert [excluded(reply) for reply in replies] == [{"TEXT": [2]}, {"MISSING": [0, 29]}]
    pixels, ids = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    scores = bundles.scores(pixels, ids).with_open(opened(60, [2, 30, 59]))
    want = POLICIES["joint"].pick(scores, balanced(6, 6, 2, 5, 3.0))
    assert [list(reply.indices) for reply in replies] == [indices for indices, _ in shares(want, 30, 2)]


def test_a_rank_with_too_few_left_refuses_all(patient):
    requests = as_ranks([some_losses(20, bad_samples=EXCLUDE, max_excluded_share=1.0) for _ in range(2)])
    requests[1].set(exclusions=[exclusion("MISSING", range(17))])
    answers = Asking(patient, requests).answers()
    assert_refused_alike(answers, answers[0].code(), "candidates left is 3 of 20; 4 must be picked", "17 missing")
    assert {error_info(answer)["reason"] for answer in answers} == {"GROUP_FAILED", "NOT_POSSIBLE"}


def test_ranks_must_say_the_same(patient):
    requests = as_ranks([some_losses(20), some_losses(20, bad_samples=EXCLUDE)])
    answers = Asking(patient, requests, order=(0, 1), pause=0.2).answers()
    assert_refused_alike(answers, answers[0].code(), "bad_samples is refuse on rank 0 and exclude on rank 1")
