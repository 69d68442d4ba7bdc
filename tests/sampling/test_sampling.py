"""The sampler against the literal float64 oracle, against properties, and against the exact law of its draws."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.sampling import (
    Criterion,
    Draw,
    Embedded,
    Loss,
    PairScores,
    Plan,
    ScalarScores,
    chunk_sizes,
    load_policies,
)
from selector_server.sampling.losses import softmax, strips
from selector_server.sampling.noise import NOISE_AHEAD, Keys, draw_chunk, gumbel

OWN = [criterion for criterion in Criterion if criterion is not Criterion.NONE]
POLICIES = load_policies()
# Bounds on memory with which so few candidates are scored all at once, and round by round.
AT_ONCE, STREAMED = None, 1_000
both_ways = pytest.mark.parametrize("tile_bytes", [AT_ONCE, STREAMED], ids=["at once", "streamed"])


def embeddings(count, width, seed, scale, bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, width, generator=generator, dtype=torch.float64)
    text = text + image  # pairs belong together
    image, text = (z / z.norm(dim=1, keepdim=True) for z in (image, text))
    return Embedded(image.to(dtype), text.to(dtype), scale, bias)


def models(count, width=16, seed=0, dtype=torch.float64):
    return embeddings(count, width, seed, 10.0, -10.0, dtype), embeddings(count, width, seed + 1, 25.0, -7.5, dtype)


def as_numpy(model):
    return model.image.double().numpy(), model.text.double().numpy(), model.scale, model.bias


def oracle_matrix(criterion, learner, reference):
    return oracle.score_matrix(criterion.name, as_numpy(learner), as_numpy(reference))


def oracle_noise(plan, count):
    rounds = [gumbel(plan.seed, r, torch.arange(count)).numpy() for r in range(len(plan.sizes))]
    return np.stack(rounds) * (plan.draw is Draw.SAMPLE)


@both_ways
@pytest.mark.parametrize("criterion", OWN)
@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize("gain", [1.0, 100.0])
@pytest.mark.parametrize(("count", "picks", "chunks"), [(96, 20, 5), (64, 64, 4), (33, 7, 7), (40, 11, 1)])
def test_joint_equals_the_literal_algorithm(criterion, draw, gain, count, picks, chunks, tile_bytes):
    learner, reference = models(count)
    plan = Plan(chunk_sizes(picks, chunks), gain, draw, seed=7)
    super_batch = PairScores(criterion, learner, reference, tile_bytes=tile_bytes)
    got = POLICIES["joint"].pick(super_batch, plan)
    matrix = oracle_matrix(criterion, learner, reference)
    want, scores = oracle.joint(matrix, plan.sizes, gain, oracle_noise(plan, count))
    assert got.indices.tolist() == want.tolist()
    np.testing.assert_allclose(got.scores.numpy(), scores, rtol=1e-9, atol=1e-9)
    assert got.total == pytest.approx(oracle.total(matrix, want), rel=1e-9)


@pytest.mark.parametrize("criterion", OWN)
@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize(("count", "picks", "chunks"), [(60, 20, 5), (33, 7, 7), (40, 11, 1), (24, 24, 3)])
def test_joint_with_the_softmax_loss_equals_algorithm_3(criterion, draw, count, picks, chunks):
    pair = models(count)
    plan = Plan(chunk_sizes(picks, chunks), 5.0, draw, seed=7)
    scores = PairScores(criterion, *pair, Loss.SOFTMAX)
    got = POLICIES["joint"].pick(scores, plan)
    terms = softmax_terms(criterion, pair)
    want, drawn = oracle.softmax_joint(terms, plan.sizes, 5.0, oracle_noise(plan, count))
    assert got.indices.tolist() == want.tolist()
    np.testing.assert_allclose(got.scores.numpy(), drawn, rtol=1e-9, atol=1e-9)
    assert got.total == pytest.approx(oracle.softmax_total(terms, want), rel=1e-9)
    assert scores.total(got.indices) == pytest.approx(got.total, rel=1e-9)


def test_the_softmax_loss_is_equation_1():
    """l_i = -1/2 [log softmax over texts + log softmax over images], by torch's cross entropy."""
    learner, reference = models(40)
    logits = learner.scale * learner.image @ learner.text.T + learner.bias
    labels = torch.arange(40)
    cross_entropy = torch.nn.functional.cross_entropy
    want = (cross_entropy(logits, labels, reduction="sum") + cross_entropy(logits.T, labels, reduction="sum")) / 2
    scores = PairScores(Criterion.HARD_LEARNER, learner, reference, Loss.SOFTMAX)
    assert scores.total(labels) == pytest.approx(float(want), rel=1e-9)
    assert scores.uniform_total(40) == pytest.approx(float(want), rel=1e-9)


def softmax_terms(criterion, pair):
    parts = ((w, m) for w, m in zip(criterion.value, pair, strict=True) if w)
    return [(w, oracle.softmax_terms(*as_numpy(m)[:3])) for w, m in parts]


def test_every_rank_gives_the_same_number_to_every_chunk():
    learner, reference = models(80)
    plan = Plan((8, 4, 4), 100.0, Draw.SAMPLE, seed=3, ranks=4)
    for policy in POLICIES.values():
        one = Plan((16,), 100.0, Draw.SAMPLE, seed=3, ranks=4)
        got = policy.pick(
            PairScores(Criterion.LEARNABILITY, learner, reference), plan if policy.name == "joint" else one
        )
        sizes = (8, 4, 4) if policy.name == "joint" else (16,)
        for chunk in got.indices.split(sizes):
            assert torch.bincount(chunk // 20, minlength=4).tolist() == [len(chunk) // 4] * 4
        assert len(set(got.indices.tolist())) == 16


def test_chunks_that_do_not_divide_among_ranks_are_refused():
    with pytest.raises(ValueError, match="multiples of the number of ranks, 4"):
        Plan((8, 6), 1.0, Draw.SAMPLE, seed=0, ranks=4)


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("gain", [1.0, 1e4])
def test_extreme_models_neither_overflow_nor_repeat(loss, gain):
    """Scale 100, bias -10, duplicates, zero rows, all candidates alike."""
    image = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    image[10:20] = image[0]
    image[20:25] = 0
    text = image.flip(1).clone()
    text[30:] = text[30]
    learner = Embedded.normalise(image, text, 100.0, -10.0)
    reference = Embedded.normalise(text, text, 100.0, 10.0)
    for draw in Draw:
        plan = Plan(chunk_sizes(40, 6), gain, draw, seed=5)
        got = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, learner, reference, loss), plan)
        assert sorted(set(got.indices.tolist())) == sorted(got.indices.tolist())
        assert bool(torch.isfinite(got.scores).all())
        assert math.isfinite(got.total)


def test_a_missing_model_is_named():
    learner, _ = models(4)
    for pair, missing in (((learner, None), "reference"), ((None, learner), "learner")):
        with pytest.raises(ValueError, match=f"needs the {missing}'s embeddings"):
            PairScores(Criterion.LEARNABILITY, *pair)


@both_ways
def test_joint_in_float32_reaches_the_oracles_objective(tile_bytes):
    learner, reference = models(512, width=32, dtype=torch.float32)
    plan = Plan(chunk_sizes(102, 16), 100.0, Draw.SAMPLE, seed=3)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference, tile_bytes=tile_bytes)
    got = POLICIES["joint"].pick(scores, plan)
    matrix = oracle_matrix(Criterion.LEARNABILITY, learner, reference)
    want, _ = oracle.joint(matrix, plan.sizes, 100.0, oracle_noise(plan, 512))
    best = oracle.total(matrix, want)
    uniform = oracle.total(matrix, np.arange(102))
    assert oracle.total(matrix, got.indices.numpy()) - uniform >= 0.999 * (best - uniform)
    assert got.total == pytest.approx(oracle.total(matrix, got.indices.numpy()), rel=1e-4)


@both_ways
@pytest.mark.parametrize("criterion", OWN)
def test_totals_equal_the_matrix(criterion, tile_bytes):
    learner, reference = models(60)
    scores = PairScores(criterion, learner, reference, tile_bytes=tile_bytes)
    matrix = oracle_matrix(criterion, learner, reference)
    picks = torch.tensor([3, 9, 0, 44, 59, 17])
    np.testing.assert_allclose(scores.own().numpy(), np.diag(matrix), rtol=1e-10)
    assert scores.total(picks) == pytest.approx(oracle.total(matrix, picks.numpy()), rel=1e-9)
    off = matrix.sum() - np.trace(matrix)
    expected = 6 * np.trace(matrix) / 60 + 6 * 5 * off / (60 * 59)
    assert scores.uniform_total(6) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("tile_bytes", [1, 1_000, 100_000])
def test_tile_size_changes_nothing(tile_bytes, loss):
    learner, reference = models(70)
    plan = Plan(chunk_sizes(14, 4), 100.0, Draw.SAMPLE, seed=1)
    whole = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, learner, reference, loss), plan)
    tiled = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, learner, reference, loss, tile_bytes), plan)
    assert whole.indices.tolist() == tiled.indices.tolist()


@pytest.mark.parametrize("loss", Loss)
def test_no_tile_is_larger_than_the_bound(loss, monkeypatch):
    bytes_, bound, for_each_tile = [], 8_000, strips.for_each_tile

    def watched(lefts, rights, tile_bytes, work):
        def watched_work(which, rows, products):
            bytes_.append(products.untyped_storage().nbytes())
            work(which, rows, products)

        for_each_tile(lefts, rights, tile_bytes, watched_work)

    for module in (softmax, strips):
        monkeypatch.setattr(module, "for_each_tile", watched)
    scores = PairScores(Criterion.LEARNABILITY, *models(700), loss, bound)
    for compute in (
        lambda: POLICIES["joint"].pick(scores, Plan(chunk_sizes(60, 3), 1.0, Draw.SAMPLE, seed=1)),
        lambda: scores.total(torch.arange(60)),
        lambda: scores.streamed().uniform_total(60),
    ):
        compute()
        assert max(bytes_, default=0) <= bound
    assert max(bytes_) > bound / 2


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_policy_returns_exactly_b_different_candidates(data):
    count = data.draw(st.integers(1, 40), "B")
    picks = data.draw(st.integers(1, count), "b")
    chunks = data.draw(st.integers(1, picks), "N")
    gain = data.draw(st.sampled_from([1e-3, 1.0, 100.0, 1e4]), "gain")
    seed = data.draw(st.integers(0, 2**64 - 1), "seed")
    draw = data.draw(st.sampled_from(Draw), "draw")
    learner, reference = models(count, width=4, seed=seed % 97)
    if data.draw(st.booleans(), "identical candidates"):
        learner, reference = (m.at(torch.zeros(count, dtype=torch.int64)) for m in (learner, reference))
    criterion, loss = data.draw(st.sampled_from(OWN), "criterion"), data.draw(st.sampled_from(Loss), "loss")
    tile_bytes = data.draw(st.sampled_from([AT_ONCE, STREAMED]), "tile bytes")
    scores = PairScores(criterion, learner, reference, loss, tile_bytes)
    for policy in POLICIES.values():
        plan = Plan(chunk_sizes(picks, chunks), gain, draw, seed)
        got = policy.pick(scores, plan).indices.tolist()
        assert len(got) == len(set(got)) == picks
        assert all(0 <= i < count for i in got)
        assert policy.pick(scores, plan).indices.tolist() == got, "same seed, same picks"


def test_one_chunk_is_independent_selection():
    learner, reference = models(50)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference)
    plan = Plan((12,), 5.0, Draw.SAMPLE, seed=11)
    joint, independent = (POLICIES[name].pick(scores, plan) for name in ("joint", "independent"))
    assert joint.indices.tolist() == independent.indices.tolist()
    assert joint.total == pytest.approx(independent.total)


def test_permuting_candidates_permutes_top_k_picks():
    learner, reference = models(80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(5))
    plan = Plan(chunk_sizes(20, 5), 100.0, Draw.TOP_K, seed=0)
    plain = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, learner, reference), plan)
    moved = POLICIES["joint"].pick(PairScores(Criterion.LEARNABILITY, learner.at(order), reference.at(order)), plan)
    assert order[moved.indices].tolist() == plain.indices.tolist()


def test_draws_follow_the_exact_law():
    """Frequencies of ordered draws against p_i / (1 - p_taken), 4 choose 2 ordered outcomes, chi-square."""
    logits = torch.tensor([0.0, 0.7, -0.5, 1.2], dtype=torch.float64)
    p = torch.softmax(logits, 0).tolist()
    trials = 20_000
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for seed in range(trials):
        plan = Plan((2,), 1.0, Draw.SAMPLE, seed)
        first, second = draw_chunk(Keys(plan, 4, logits.device).of(logits, 0), 2, plan).tolist()
        counts[first, second] += 1
    expected = {(i, j): trials * p[i] * p[j] / (1 - p[i]) for i, j in counts}
    chi2 = sum((counts[k] - expected[k]) ** 2 / expected[k] for k in counts)
    assert chi2 < 31.3  # 99.9 % quantile at 11 degrees of freedom


def test_noise_is_gumbel_and_independent_of_layout():
    noise = gumbel(123, 4, torch.arange(200_000))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    lag = torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1]
    assert abs(float(lag)) < 0.01
    assert torch.equal(gumbel(123, 4, torch.arange(100, 200)), noise[100:200])
    assert not torch.equal(gumbel(123, 5, torch.arange(100)), noise[:100])
    assert not torch.equal(gumbel(124, 4, torch.arange(100)), noise[:100])
    assert bool(torch.isfinite(noise).all())


@pytest.mark.parametrize("first", [0, 700])
def test_noise_that_is_made_ahead_is_that_of_its_round_and_candidates(first):
    """So many candidates that the noise of three rounds is made at once."""
    count, plan = NOISE_AHEAD // 3, Plan((1,) * 8, 1.0, Draw.SAMPLE, seed=5)
    keys = Keys(plan, count, torch.device("cpu"), first)
    for round_ in range(8):
        got = keys.of(torch.full((count,), 2.0, dtype=torch.float64), round_)
        assert torch.equal(got, 2.0 + gumbel(5, round_, torch.arange(first, first + count))), f"round {round_}"


def test_extreme_scores_are_drawn_without_overflow():
    own = torch.tensor([1e6, -1e6, 0.0, 1e6, 3e5])
    picks = POLICIES["independent"].pick(ScalarScores(own), Plan((3,), 1e4, Draw.SAMPLE, 0))
    assert sorted(picks.indices.tolist()) == [0, 3, 4]


def test_top_k_ties_go_to_the_lower_index():
    picks = POLICIES["independent"].pick(ScalarScores(torch.ones(1000)), Plan((5,), 100.0, Draw.TOP_K, 0))
    assert picks.indices.tolist() == [0, 1, 2, 3, 4]


@given(picks=st.integers(1, 10_000), chunks=st.integers(1, 64))
def test_chunk_sizes_differ_by_at_most_one(picks, chunks):
    chunks = min(picks, chunks)
    sizes = chunk_sizes(picks, chunks)
    assert (sum(sizes), len(sizes)) == (picks, chunks)
    assert max(sizes) - min(sizes) <= 1


def test_zero_rows_normalise_to_zero():
    model = Embedded.normalise(torch.zeros(3, 4), torch.ones(3, 4) * 9, 10.0, -10.0)
    assert torch.equal(model.image, torch.zeros(3, 4))
    assert model.text.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("count", [767, 768, 769])
def test_where_pairs_are_scored_at_once_makes_no_difference(count):
    learner, reference = models(count)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference)
    plan = Plan(chunk_sizes(150, 16), 100.0, Draw.SAMPLE, seed=2)
    running = scores.running(), scores.streamed()
    assert (type(running[0]) is type(running[1])) == (count > 768)
    got, streamed = (POLICIES["joint"].pick(replace(scores, tile_bytes=bound), plan) for bound in (None, 10**6))
    assert got.indices.tolist() == streamed.indices.tolist()
    assert got.total == pytest.approx(streamed.total, rel=1e-9)
