"""What each part of a rule does to a real server's picks, against the sampler with torch's own embeddings."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from selector_proto.v1 import selector_pb2 as pb
from support.model import POLICIES, embed, plan
from support.processes import eventually
from support.rules import (
    COUNT,
    CRITERIA,
    EASY,
    HARD,
    LEARNABILITY,
    LEARNER,
    MIXED,
    NONE,
    PICKS,
    PIXELS,
    REFERENCE,
    TOKENS,
    arrays_of,
    avoiding,
    bring,
    cosines,
    embedded,
    kept,
    name,
    picked,
    scored,
    with_losses,
)
from support.wire import Request, embeddings, losses, raw, some_losses

from selector_server.sampling import Criterion, Embedded, PairScores, ScalarScores
from selector_server.sampling.noise import EXPLORE_STREAM, gumbel

# Own pairs and other pairs


@pytest.mark.parametrize(("own", "pairs"), list(itertools.product([LEARNABILITY, EASY, HARD], CRITERIA)))
def test_samples_are_compared_by_one_criterion_and_their_pairs_by_another(server, bundles, own, pairs):
    reply = server.select(raw(PIXELS, TOKENS, criterion=own, pair_criterion=pairs, seed=4, gain=3.0))
    scores = PairScores(
        CRITERIA[own],
        embed(bundles.learner, PIXELS, TOKENS),
        embed(bundles.reference, PIXELS, TOKENS),
        pair_criterion=CRITERIA[pairs],
    )
    picks = POLICIES["joint"].pick(scores, plan(PICKS, gain=3.0, seed=4))
    assert list(reply.indices) == picks.indices.tolist()
    np.testing.assert_allclose(reply.scores, picks.scores, rtol=1e-4, atol=1e-4)
    assert reply.objective == pytest.approx(picks.total / PICKS, rel=1e-4)
    assert reply.objective_uniform == pytest.approx(scores.uniform_total(PICKS) / PICKS, rel=1e-4)
    assert (reply.criterion, reply.pair_criterion) == (own, pairs)
    needs_learner, needs_reference = (any(CRITERIA[one].value[model] for one in (own, pairs)) for model in (0, 1))
    assert reply.HasField("weights") == (reply.stages.encode_learner > 0) == needs_learner
    assert (reply.stages.encode_reference > 0) == needs_reference


@pytest.mark.parametrize("criterion", [0, LEARNABILITY, EASY, HARD])
@pytest.mark.parametrize("policy", ["joint", "independent"])
def test_without_a_criterion_of_their_own_pairs_have_the_one_that_there_is(plain_server, criterion, policy):
    request = embeddings(LEARNER, REFERENCE, criterion=criterion, policy=policy, seed=2)
    plain = plain_server.select(request)
    same = plain_server.select(request.set(pair_criterion=criterion or LEARNABILITY))
    assert list(plain.indices) == list(same.indices)
    assert list(plain.scores) == list(same.scores)
    assert plain.criterion == plain.pair_criterion == same.pair_criterion == (criterion or LEARNABILITY)


def test_uniform_compares_nothing(plain_server):
    reply = plain_server.select(some_losses(policy="uniform", criterion=EASY))
    assert reply.criterion == reply.pair_criterion == pb.CRITERION_UNSPECIFIED


# One loss a candidate in the learner's place


def own_losses(model, dtype=np.float32):
    return scored(HARD, learner=model, reference=None).own_losses()[0].numpy().astype(dtype)


@pytest.mark.parametrize("policy", ["joint", "independent"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_loss_a_candidate_stands_for_the_learner(plain_server, policy, dtype):
    values = own_losses(LEARNER, dtype)
    request = with_losses(values, REFERENCE, policy=policy, seed=6, gain=4.0, return_losses=True, **MIXED)
    reply = plain_server.select(request)
    scores = scored(LEARNABILITY, EASY, learner=None, learner_losses=torch.from_numpy(values))
    wanted = plan(PICKS, gain=4.0, seed=6)
    picks = POLICIES[policy].pick(scores, wanted)
    assert list(reply.indices) == picks.indices.tolist()
    assert reply.objective == pytest.approx(picks.total / PICKS, rel=1e-5)
    np.testing.assert_allclose(reply.learner_losses, values[picks.indices], rtol=1e-6)
    whole = plain_server.select(embeddings(LEARNER, REFERENCE, policy=policy, seed=6, gain=4.0, **MIXED))
    if dtype is np.float32:
        assert list(whole.indices) == list(reply.indices)
        np.testing.assert_allclose(reply.scores, whole.scores, rtol=1e-5, atol=1e-5)


def test_losses_of_the_learner_need_no_embeddings_at_all(plain_server):
    values = own_losses(LEARNER)
    fields = {"criterion": HARD, "pair_criterion": NONE, "draw": pb.DRAW_TOP_K}
    reply = plain_server.select(with_losses(values, None, **fields))
    assert list(reply.indices) == np.argsort(-values, kind="stable")[:PICKS].tolist()


def test_a_loss_that_is_no_number_is_left_out(plain_server):
    values = own_losses(LEARNER)
    values[[0, 7]] = np.nan, np.inf
    reply = plain_server.select(with_losses(values, REFERENCE, bad_samples=pb.BAD_SAMPLES_EXCLUDE, seed=6, **MIXED))
    assert [(one.reason, list(one.indices)) for one in reply.exclusions] == [(pb.EXCLUSION_REASON_VALUE, [0, 7])]
    values[[0, 7]] = 0.0
    open_ = torch.ones(COUNT, dtype=torch.bool)
    open_[[0, 7]] = False
    scores = scored(LEARNABILITY, EASY, learner=None, learner_losses=torch.from_numpy(values)).with_open(open_)
    assert list(reply.indices) == picked(scores, plan(PICKS, seed=6))


# What the reference makes of samples comes with them


@pytest.fixture(scope="module")
def brought(bundles):
    return arrays_of(embed(bundles.reference, PIXELS, TOKENS))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embeddings_of_the_servers_own_reference_stand_for_it(server, bundles, brought, dtype):
    fingerprint = server.info().reference.fingerprint
    image, text, scale, bias = brought
    sent = (image.astype(dtype), text.astype(dtype), scale, bias)
    reply = server.select(bring(raw(PIXELS, TOKENS, seed=4), sent, fingerprint))
    scores = PairScores(Criterion.LEARNABILITY, embed(bundles.learner, PIXELS, TOKENS), embedded(sent))
    assert list(reply.indices) == picked(scores, plan(PICKS, seed=4))
    assert reply.stages.encode_reference == 0 < reply.stages.encode_learner
    if dtype is np.float32:
        assert list(reply.indices) == list(server.select(raw(PIXELS, TOKENS, seed=4)).indices)


def test_a_server_without_a_reference_takes_those_of_any(sidecar, bundles, brought):
    server = sidecar({"learner": bundles.learner_path})
    assert server.refuse(raw(PIXELS, TOKENS)).code().name == "FAILED_PRECONDITION"
    reply = server.select(bring(raw(PIXELS, TOKENS, seed=4), brought, "somebody's"))
    assert list(reply.indices) == bundles.picks(PIXELS, TOKENS, plan(PICKS, seed=4))
    far = (brought[0] * 3.0, -brought[1], 9.0, brought[3])
    other = server.select(bring(raw(PIXELS, TOKENS, seed=4), far, "somebody's"))
    scores = PairScores(Criterion.LEARNABILITY, embed(bundles.learner, PIXELS, TOKENS), embedded(far))
    assert list(other.indices) == picked(scores, plan(PICKS, seed=4)), "rows of any length, its own scale"


def test_a_server_without_models_picks_by_what_was_brought(plain_server, brought):
    fields = {"criterion": EASY, "seed": 4, "bad_samples": pb.BAD_SAMPLES_EXCLUDE}
    reply = plain_server.select(bring(raw(PIXELS, TOKENS, **fields), brought, "x"))
    assert list(reply.indices) == picked(scored(EASY, learner=None, reference=brought), plan(PICKS, seed=4))
    assert reply.not_examined == COUNT
    assert not reply.HasField("weights")


def test_what_was_brought_of_a_candidate_that_is_left_out_is_not_looked_at(server, bundles, brought):
    image = brought[0].copy()
    image[5] = np.nan
    request = bring(raw(PIXELS, TOKENS, seed=4), (image, *brought[1:]), server.info().reference.fingerprint)
    missing = pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[5])
    reply = server.select(request.set(bad_samples=pb.BAD_SAMPLES_EXCLUDE, exclusions=[missing]))
    open_ = torch.ones(COUNT, dtype=torch.bool)
    open_[5] = False
    assert list(reply.indices) == picked(bundles.scores(PIXELS, TOKENS).with_open(open_), plan(PICKS, seed=4))
    assert [one.reason for one in reply.exclusions] == [pb.EXCLUSION_REASON_MISSING]


# Prefilter


def rounded(bundles):
    """The reference's embeddings as the cache keeps them."""
    fresh = embed(bundles.reference, PIXELS, TOKENS)
    return Embedded(fresh.image.half().float(), fresh.text.half().float(), fresh.scale, fresh.bias)


def files_of(rows):
    """Files of the pixels of these rows, and something that is no file in the place of all others."""
    files = [b"not a picture"] * COUNT
    for row in rows:
        out = io.BytesIO()
        Image.fromarray(PIXELS[row]).save(out, "PNG")
        files[row] = out.getvalue()
    return files


def as_files(files, **fields):
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack(files))
    request.selection.samples.tokens.CopyFrom(request.add(TOKENS))
    return name(request.set(**fields), range(COUNT))


def test_of_cached_candidates_only_the_best_are_decoded_and_compete(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache", "access_log": "true"})
    reply = server.select(as_files(files_of(range(COUNT)), prefilter=1.5, seed=2))
    assert (reply.prefiltered.known, reply.prefiltered.unknown, reply.prefiltered.left_out) == (0, COUNT, 0)
    eventually(lambda: server.select(as_files(files_of(range(COUNT)), seed=2)).cached_references == COUNT)
    seen = rounded(bundles)
    open_ = kept((seen.image.double() * seen.text.double()).sum(dim=1), 12)
    survivors = open_.nonzero().flatten().tolist()
    assert len(survivors) == 12
    scores = PairScores(Criterion.LEARNABILITY, embed(bundles.learner, PIXELS, TOKENS), seen).with_open(open_)
    for fields in ({}, {"bad_samples": pb.BAD_SAMPLES_EXCLUDE}):
        reply = server.select(as_files(files_of(survivors), prefilter=1.5, seed=2, **fields))
        assert list(reply.indices) == picked(scores, plan(PICKS, seed=2)), "noise is by the candidate's own index"
        assert (reply.prefiltered.known, reply.prefiltered.unknown) == (COUNT, 0)
        assert reply.prefiltered.left_out == COUNT - 12
        assert not reply.exclusions
        assert (reply.cached_references, reply.not_examined) == (COUNT, COUNT - 12)
        eventually(lambda: "8 of 40 picked by joint, 28 left out by the prefilter" in server.text)
        assert reply.objective_uniform == pytest.approx(scores.uniform_total(PICKS) / PICKS, rel=1e-4)
    decoded = as_files(files_of(survivors), seed=2)
    assert server.refuse(decoded).code().name == "INVALID_ARGUMENT", "without a prefilter all are looked at"


def test_candidates_that_the_cache_does_not_know_go_on(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    known = 25
    part = name(raw(PIXELS[:known], TOKENS[:known], seed=1), range(known))
    server.select(part)
    eventually(lambda: server.select(part).cached_references == known)
    reply = server.select(name(raw(PIXELS, TOKENS, prefilter=1.25, seed=9, **MIXED), range(COUNT)))
    counts = reply.prefiltered
    assert (counts.known, counts.unknown, counts.left_out) == (known, COUNT - known, known - 10)
    seen = rounded(bundles)
    worth = (seen.image.double() * seen.text.double()).sum(dim=1).numpy()
    worth[known:] = np.nan
    scores = PairScores(
        Criterion.LEARNABILITY, embed(bundles.learner, PIXELS, TOKENS), seen, pair_criterion=Criterion.EASY_REFERENCE
    )
    assert list(reply.indices) == picked(scores.with_open(kept(worth, 10)), plan(PICKS, seed=9))


def test_a_prefilter_by_what_was_brought_decodes_its_survivors_only(sidecar, bundles, brought):
    server = sidecar({"learner": bundles.learner_path})
    open_ = kept(cosines(brought), 20)
    request = as_files(files_of(open_.nonzero().flatten().tolist()), prefilter=2.5, seed=3)
    request.selection.ClearField("sample_ids")
    reply = server.select(bring(request, brought, "x"))
    assert list(reply.indices) == picked(bundles.scores(PIXELS, TOKENS).with_open(open_), plan(PICKS, seed=3))
    assert (reply.prefiltered.known, reply.prefiltered.left_out, reply.not_examined) == (COUNT, 20, 20)


def test_a_candidate_that_cannot_be_used_is_no_survivor(plain_server):
    image = REFERENCE[0].copy()
    best = int(cosines(REFERENCE).argmax())
    image[best] = np.nan
    request = embeddings(LEARNER, (image, *REFERENCE[1:]), prefilter=2.0, bad_samples=pb.BAD_SAMPLES_EXCLUDE, seed=3)
    reply = plain_server.select(request)
    worth = cosines(REFERENCE).numpy()
    worth[best] = -math.inf
    assert list(reply.indices) == picked(scored().with_open(kept(worth, 16)), plan(PICKS, seed=3))
    assert (reply.prefiltered.known, reply.prefiltered.unknown, reply.prefiltered.left_out) == (39, 0, 23)
    assert [list(one.indices) for one in reply.exclusions] == [[best]]


def test_if_too_few_survivors_can_be_used_the_refusal_says_why(sidecar, bundles, brought):
    server = sidecar({"learner": bundles.learner_path})
    open_ = kept(cosines(brought), PICKS).nonzero().flatten().tolist()
    request = as_files(files_of(open_[1:]), prefilter=1.0, bad_samples=pb.BAD_SAMPLES_EXCLUDE)
    error = server.refuse(bring(request, brought, "x"))
    assert error.code().name == "FAILED_PRECONDITION"
    assert f"candidates left is 7 of 40; 8 must be picked; excluded are 1 format (candidate {open_[0]}:" in (
        error.details()
    )
    assert error.details().endswith("beside 32 that the prefilter left out")


@pytest.mark.parametrize("policy", ["joint", "independent"])
def test_embeddings_are_prefiltered(plain_server, policy):
    reply = plain_server.select(embeddings(LEARNER, REFERENCE, prefilter=1.5, policy=policy, seed=3))
    scores = scored().with_open(kept(cosines(REFERENCE), 12))
    assert list(reply.indices) == picked(scores, plan(PICKS, seed=3), policy)
    assert reply.prefiltered == pb.Prefiltered(known=COUNT, left_out=COUNT - 12)


def test_losses_are_prefiltered_and_ties_go_to_the_lower_index(plain_server):
    learner, reference = np.random.default_rng(1).random((2, COUNT), dtype=np.float32)
    reference = np.round(reference, 1)
    reply = plain_server.select(losses(learner, reference, prefilter=1.5, seed=3))
    scores = ScalarScores(torch.from_numpy(learner).double() - torch.from_numpy(reference).double())
    open_ = kept(-reference, 12)
    assert list(reply.indices) == picked(scores.with_open(open_), plan(PICKS, 1, seed=3), "independent")
    last = reference[open_.numpy()].max()
    tied = np.flatnonzero(reference == last)
    assert open_[tied].tolist() == sorted(open_[tied].tolist(), reverse=True)
    assert reply.prefiltered.left_out == COUNT - 12


def test_a_prefilter_that_keeps_all_changes_nothing(plain_server):
    plain = plain_server.select(embeddings(LEARNER, REFERENCE, seed=3))
    for prefilter in (5.0, 1e6):
        reply = plain_server.select(embeddings(LEARNER, REFERENCE, seed=3, prefilter=prefilter))
        assert list(reply.indices) == list(plain.indices)
        assert reply.prefiltered.left_out == 0
    assert not plain.HasField("prefiltered")


# Picks apart, recent picks, uniform picks


@pytest.mark.parametrize("policy", ["joint", "independent"])
@pytest.mark.parametrize("limit", [0.2, 0.6, 0.9])
def test_picks_are_kept_apart(server, bundles, policy, limit):
    reply = server.select(raw(PIXELS, TOKENS, max_similarity=limit, policy=policy, seed=5))
    reference = embed(bundles.reference, PIXELS, TOKENS)
    scores = PairScores(Criterion.LEARNABILITY, embed(bundles.learner, PIXELS, TOKENS), reference, max_similarity=limit)
    assert list(reply.indices) == picked(scores, plan(PICKS, seed=5), policy)
    rows = list(reply.indices)
    most = max((side[rows] @ side[rows].T).fill_diagonal_(-1).max() for side in (reference.image, reference.text))
    assert most <= limit or limit == 0.2, "at 0.2 too few are unlike, and others fill up"


def test_recent_picks_are_avoided(plain_server):
    plain = list(plain_server.select(embeddings(LEARNER, REFERENCE, seed=5, max_similarity=0.99)).indices)
    image, text, *_ = REFERENCE
    request = embeddings(LEARNER, REFERENCE, seed=5, max_similarity=0.99)
    reply = plain_server.select(avoiding(request, 5 * image[plain], text[plain]))
    assert not set(reply.indices) & set(plain)
    seen = embedded(REFERENCE).at(torch.tensor(plain))
    assert list(reply.indices) == picked(scored(max_similarity=0.99, recent=seen), plan(PICKS, seed=5))
    everything = embeddings(LEARNER, REFERENCE, seed=5, max_similarity=0.99)
    reply = plain_server.select(avoiding(everything, image, text))
    assert len(set(reply.indices)) == PICKS, "where nothing else is left, they fill up"


def test_recent_picks_beside_samples(server, bundles):
    fields = {"seed": 5, "max_similarity": 0.999, "criterion": EASY}
    plain = list(server.select(raw(PIXELS, TOKENS, **fields)).indices)
    seen = embed(bundles.reference, PIXELS, TOKENS).at(torch.tensor(plain))
    reply = server.select(avoiding(raw(PIXELS, TOKENS, **fields), seen.image.numpy(), seen.text.numpy()))
    assert not set(reply.indices) & set(plain)


@pytest.mark.parametrize("policy", ["joint", "independent"])
@pytest.mark.parametrize("draw", [pb.DRAW_SAMPLE, pb.DRAW_TOP_K])
def test_a_share_of_the_picks_is_uniform_and_comes_first(plain_server, policy, draw):
    request = embeddings(LEARNER, REFERENCE, explore=0.4, seed=7, policy=policy, draw=draw, chunks=8)
    reply = plain_server.select(request)
    assert reply.explored == 3
    assert sum(reply.chunk_sizes) == reply.sub_batch_size - 3 == 5
    noise = gumbel(7, EXPLORE_STREAM, torch.arange(COUNT))
    assert list(reply.indices)[:3] == noise.argsort(descending=True)[:3].tolist()
    assert len(set(reply.indices)) == PICKS
    other = list(plain_server.select(request.set(criterion=EASY)).indices)
    assert other[:3] == list(reply.indices)[:3], "whatever candidates score"
    assert other != list(reply.indices)


@pytest.mark.parametrize(("share", "count"), [(0.01, 0), (0.125, 1), (0.999, 7)])
def test_the_share_of_uniform_picks_is_rounded_down_and_never_all(plain_server, share, count):
    reply = plain_server.select(embeddings(LEARNER, REFERENCE, explore=share))
    assert reply.explored == count
    if not count:
        plain = plain_server.select(embeddings(LEARNER, REFERENCE, seed=reply.seed))
        assert list(plain.indices) == list(reply.indices)


# Losses given back


def test_own_losses_of_the_picks_are_given_back(server, bundles):
    learner, reference = bundles.scores(PIXELS, TOKENS).own_losses()
    reply = server.select(raw(PIXELS, TOKENS, seed=1, return_losses=True))
    rows = list(reply.indices)
    np.testing.assert_allclose(reply.learner_losses, learner[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reply.reference_losses, reference[rows], rtol=1e-4, atol=1e-5)
    easy = server.select(raw(PIXELS, TOKENS, seed=1, return_losses=True, criterion=EASY))
    assert not easy.learner_losses, "the learner did not look at them"
    np.testing.assert_allclose(easy.reference_losses, reference[list(easy.indices)], rtol=1e-4, atol=1e-5)
    for request in (raw(PIXELS, TOKENS), some_losses(return_losses=True), some_losses(policy="uniform")):
        reply = server.select(request)
        assert not reply.learner_losses
        assert not reply.reference_losses
