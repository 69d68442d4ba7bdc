"""Pairs with a criterion of their own, uniform picks, and picks that are kept apart, against literal oracles."""

import itertools
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import OWN, POLICIES, as_numpy, both_ways, models, oracle_matrix, oracle_noise, softmax_terms

from selector_server.sampling import Criterion, Draw, Loss, PairScores, Plan, ScalarScores, chunk_sizes
from selector_server.sampling.noise import EXPLORE_STREAM, gumbel

PAIRS = list(Criterion)
CASES = [(96, 20, 5), (33, 7, 7), (40, 11, 1)]


def mixed_matrix(criterion, pair_criterion, learner, reference):
    """S_ii by one criterion, and S_ij of all others by the other."""
    count = len(learner)
    pairs = np.zeros((count, count))
    if pair_criterion is not Criterion.NONE:
        pairs = oracle_matrix(pair_criterion, learner, reference)
    return np.where(np.eye(count, dtype=bool), oracle_matrix(criterion, learner, reference), pairs)


@both_ways
@pytest.mark.parametrize("criterion", OWN)
@pytest.mark.parametrize("pair_criterion", PAIRS)
@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize(("count", "picks", "chunks"), CASES)
def test_own_terms_and_pairs_have_criteria_of_their_own(
    criterion, pair_criterion, draw, count, picks, chunks, tile_bytes
):
    learner, reference = models(count)
    plan = Plan(chunk_sizes(picks, chunks), 5.0, draw, seed=7)
    scores = PairScores(criterion, learner, reference, tile_bytes=tile_bytes, pair_criterion=pair_criterion)
    got = POLICIES["joint"].pick(scores, plan)
    matrix = mixed_matrix(criterion, pair_criterion, learner, reference)
    want, drawn = oracle.joint(matrix, plan.sizes, plan.gain, oracle_noise(plan, count))
    assert got.indices.tolist() == want.tolist()
    np.testing.assert_allclose(got.scores.numpy(), drawn, rtol=1e-9, atol=1e-9)
    assert got.total == pytest.approx(oracle.total(matrix, want), rel=1e-9)
    assert scores.total(got.indices) == pytest.approx(got.total, rel=1e-9)
    everyone = PairScores(criterion, learner, reference, tile_bytes=tile_bytes, pair_criterion=pair_criterion)
    assert everyone.uniform_total(count) == pytest.approx(matrix.sum(), rel=1e-5)


@both_ways
@pytest.mark.parametrize("criterion", OWN)
def test_a_pair_criterion_that_is_the_same_changes_no_bit(criterion, tile_bytes):
    plan = Plan((10, 10), 100.0, Draw.SAMPLE, seed=1)
    scores = PairScores(criterion, *models(64), tile_bytes=tile_bytes)
    one, other = (POLICIES["joint"].pick(s, plan) for s in (scores, replace(scores, pair_criterion=criterion)))
    assert one.indices.tolist() == other.indices.tolist()
    assert one.scores.tolist() == other.scores.tolist()
    assert one.total == other.total


@both_ways
def test_one_loss_a_candidate_stands_for_the_learner_where_no_pair_needs_it(tile_bytes):
    learner, reference = models(64)
    plan = Plan((5, 5, 6), 5.0, Draw.SAMPLE, seed=2)
    whole = PairScores(
        Criterion.LEARNABILITY, learner, reference, tile_bytes=tile_bytes, pair_criterion=Criterion.EASY_REFERENCE
    )
    losses = whole.own_losses()[0]
    alone = replace(whole, learner=None, learner_losses=losses)
    for scores in (whole, alone):
        assert torch.equal(scores.own(), losses - whole.own_losses()[1])
    one, other = (POLICIES["joint"].pick(scores, plan) for scores in (whole, alone))
    assert one.indices.tolist() == other.indices.tolist()
    assert one.total == other.total
    part = alone.at(torch.tensor([3, 9]))
    assert torch.equal(part.own(), alone.own()[[3, 9]])


def test_losses_do_not_stand_for_pairs_of_the_learner():
    learner, reference = models(8)
    losses = torch.ones(8)
    for wrong in (
        lambda: PairScores(Criterion.LEARNABILITY, None, reference, learner_losses=losses),
        lambda: PairScores(Criterion.LEARNABILITY, None, reference, pair_criterion=Criterion.EASY_REFERENCE),
        lambda: PairScores(
            Criterion.LEARNABILITY, None, reference, pair_criterion=Criterion.HARD_LEARNER, learner_losses=losses
        ),
        lambda: PairScores(Criterion.LEARNABILITY, learner, None, pair_criterion=Criterion.NONE),
        lambda: PairScores(Criterion.NONE, learner, reference),
        lambda: PairScores(Criterion.LEARNABILITY, learner, reference, Loss.SOFTMAX, pair_criterion=Criterion.NONE),
        lambda: PairScores(Criterion.HARD_LEARNER, None, None, Loss.SOFTMAX, learner_losses=losses),
        lambda: PairScores(Criterion.HARD_LEARNER, learner, None, max_similarity=0.9),
    ):
        with pytest.raises(ValueError, match=r"criterion|losses of the learner|max_similarity"):
            wrong()


def sequential(worth, plan, near, closed=()):
    """Rounds in which picks are taken one after the other; whatever is `near` one is passed over, bool [B, B], unless
    nothing else is left. `worth(i, chosen)` is a candidate's score."""
    count, chosen = len(near), []
    noise = oracle_noise(plan, count)
    uniform = gumbel(plan.seed, EXPLORE_STREAM, torch.arange(count)).numpy()
    for round_, left in enumerate([plan.explore, *plan.sizes], start=-1):
        plain = np.array([worth(i, chosen) for i in range(count)])
        keys = uniform if round_ < 0 else plan.gain * plain + noise[round_]
        taken: list[int] = []
        order = sorted((i for i in range(count) if i not in closed), key=lambda i: (-keys[i], i))
        for wanted in (lambda i: not near[i, chosen].any(), lambda _: True):
            for i in order:
                if left > len(taken) and i not in chosen and wanted(i):
                    chosen.append(i)
                    taken.append(i)
    return chosen


@st.composite
def rules(draw):
    count = draw(st.integers(2, 40), "B")
    closed = draw(st.sets(st.integers(0, count - 1), max_size=count - 1), "closed")
    picks = draw(st.integers(1, count - len(closed)), "b")
    explore = draw(st.integers(0, picks - 1), "explored")
    sizes = chunk_sizes(picks - explore, draw(st.integers(1, picks - explore), "N"))
    gain, how = draw(st.sampled_from([1.0, 100.0])), draw(st.sampled_from(Draw))
    plan = Plan(sizes, gain, how, draw(st.integers(0, 2**64 - 1)))
    criteria = draw(st.sampled_from(OWN)), draw(st.sampled_from(PAIRS))
    limit = draw(st.sampled_from([None, 0.05, 0.3, 0.6, 0.999]), "max_similarity")
    return count, sorted(closed), replace(plan, explore=explore), criteria, limit, draw(st.sampled_from([None, 1000]))


@settings(deadline=None, max_examples=150)
@given(rule=rules(), seed=st.integers(0, 50))
def test_uniform_picks_and_picks_apart_equal_the_literal_rounds(rule, seed):
    count, closed, plan, (criterion, pair_criterion), limit, tile_bytes = rule
    learner, reference = models(count, width=8, seed=seed)
    open_ = torch.ones(count, dtype=torch.bool)
    open_[closed] = False
    scores = PairScores(
        criterion, learner, reference, Loss.SIGMOID, tile_bytes, pair_criterion=pair_criterion, max_similarity=limit
    ).with_open(open_)
    got = POLICIES["joint"].pick(scores, plan)
    image, text = as_numpy(reference)[:2]
    near = np.zeros((count, count), bool) if limit is None else (image @ image.T > limit) | (text @ text.T > limit)
    matrix = mixed_matrix(criterion, pair_criterion, learner, reference)

    def worth(i, chosen):
        return matrix[i, i] + matrix[chosen, i].sum() + matrix[i, chosen].sum()

    want = sequential(worth, plan, near, closed)
    assert_same_rounds(got.indices, want, plan, in_order=limit is None)
    assert got.total == pytest.approx(oracle.total(matrix, want), rel=1e-7, abs=1e-7)


def assert_same_rounds(got, want, plan, in_order):
    """Those of a round may come in another order: the fill-up of one that has too few comes in parts."""
    ends = np.cumsum([plan.explore, *plan.sizes])[:-1]
    for mine, theirs in zip(np.split(got.numpy(), ends), np.split(np.array(want), ends), strict=True):
        assert (mine.tolist() == theirs.tolist()) if in_order else (sorted(mine) == sorted(theirs))


@pytest.mark.parametrize("criterion", OWN)
@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize("limit", [None, 0.3, 0.7])
@both_ways
def test_by_the_softmax_loss_too(criterion, draw, limit, tile_bytes):
    learner, reference = models(48, width=8)
    if criterion is Criterion.HARD_LEARNER and limit is not None:
        reference = learner
    plan = Plan(chunk_sizes(13, 4), 5.0, draw, seed=3, explore=4)
    seen = {"learner": learner, "reference": reference}
    scores = PairScores(criterion, **seen, loss=Loss.SOFTMAX, tile_bytes=tile_bytes, max_similarity=limit)
    terms = softmax_terms(criterion, (learner, reference))
    image, text = as_numpy(reference)[:2]
    near = np.zeros((48, 48), bool) if limit is None else (image @ image.T > limit) | (text @ text.T > limit)

    def worth(i, chosen):
        return sum(weight * oracle.softmax_score(model, i, chosen) for weight, model in terms)

    got = POLICIES["joint"].pick(scores, plan)
    assert_same_rounds(got.indices, sequential(worth, plan, near), plan, in_order=limit is None)
    assert got.total == pytest.approx(oracle.softmax_total(terms, got.indices.tolist()), rel=1e-9)


@pytest.mark.parametrize("policy", ["joint", "independent"])
def test_no_two_picks_are_more_alike_than_allowed_while_others_are_left(policy):
    learner, reference = models(300, width=6)
    plan = Plan(chunk_sizes(30, 3) if policy == "joint" else (30,), 100.0, Draw.SAMPLE, seed=4)
    scores = PairScores(Criterion.LEARNABILITY, learner, reference, max_similarity=0.8)
    rows = POLICIES[policy].pick(scores, plan).indices
    image, text = reference.image[rows], reference.text[rows]
    most = torch.maximum(image @ image.T, text @ text.T).fill_diagonal_(0).max()
    assert most <= 0.8
    free = POLICIES[policy].pick(replace(scores, max_similarity=None), plan).indices
    image = reference.image[free]
    assert (image @ image.T).fill_diagonal_(0).max() > 0.8, "without the limit they would be"


def test_of_ranks_each_gets_as_many_picks_kept_apart_and_as_many_uniform_ones():
    learner, reference = models(80)
    plan = Plan((8, 4), 100.0, Draw.SAMPLE, seed=4, ranks=4, explore=8)
    for limit in (None, 0.2, 0.7):
        scores = PairScores(Criterion.LEARNABILITY, learner, reference, max_similarity=limit)
        rows = POLICIES["joint"].pick(scores, plan).indices
        assert len(set(rows.tolist())) == 20
        for part in (rows[:8], rows[8:16], rows[16:]):
            assert set(torch.bincount(part // 20, minlength=4).tolist()) == {len(part) // 4}


def test_uniform_picks_are_uniform_among_the_open():
    values = torch.linspace(-50, 50, 12, dtype=torch.float64)
    open_ = torch.ones(12, dtype=torch.bool)
    open_[[11, 3]] = False
    scores, counts = ScalarScores(values, open_), torch.zeros(12)
    for seed in range(4000):
        plan = Plan((1,), 100.0, Draw.TOP_K, seed, explore=1)
        uniform, best = POLICIES["independent"].pick(scores, plan).indices.tolist()
        assert best == (10 if uniform != 10 else 9)
        counts[uniform] += 1
    assert counts[[11, 3]].tolist() == [0, 0]
    share = counts[open_] / 4000
    assert ((share - 0.1).abs() < 5 * (0.1 * 0.9 / 4000) ** 0.5).all()


def test_plans_of_ranks_explore_equally():
    for sizes, explore in itertools.product([(4,), (8, 4)], [0, 4]):
        assert Plan(sizes, 1.0, Draw.SAMPLE, 0, 4, explore).picks == sum(sizes) + explore
    with pytest.raises(ValueError, match="3 uniform picks"):
        Plan((4,), 1.0, Draw.SAMPLE, 0, ranks=4, explore=3)
