"""Candidates that may not be picked: the literal oracle never picks them either, what stands in their place is of no
matter, and without any, all is as it was."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import OWN, POLICIES, models, oracle_matrix, oracle_noise, softmax_terms

from selector_server.sampling import (
    Criterion,
    Draw,
    Loss,
    Needs,
    PairScores,
    Picks,
    Plan,
    Policy,
    ScalarScores,
    chunk_sizes,
)
from selector_server.sampling.joint import WholePool, draw_in_chunks
from selector_server.sampling.losses import OpenScores
from selector_server.sampling.policies import Independent, pick_open
from selector_server.sampling.quality import assess

BOUNDS = (-1.0, 0.0, 1.0)


def test_without_closed_candidates_every_pick_is_what_it_was():
    kept = json.loads(Path(golden.__file__).with_name("golden.json").read_text())
    found = golden.found()
    assert found.keys() == kept.keys()
    for name, was in kept.items():
        now = found[name]
        assert now["indices"] == was["indices"], name
        for part in ("scores", "total", "uniform", "left"):
            np.testing.assert_allclose(now[part], was[part], rtol=1e-7, atol=1e-7, err_msg=name)
        assert now["shares"] == pytest.approx(was["shares"]), name


def mask(count, closed):
    open_ = torch.ones(count, dtype=torch.bool)
    open_[list(closed)] = False
    return open_


def with_other_rows(model, closed, value):
    """The model, with something else in the place of some candidates."""
    image, text = model.image.clone(), model.text.clone()
    image[list(closed)], text[list(closed)] = value, -value
    return replace(model, image=image, text=text)


@st.composite
def selections(draw):
    """Criterion, loss, plan, tile bytes, the closed candidates, and their number in all."""
    count = draw(st.integers(2, 40), "B")
    closed = draw(st.sets(st.integers(0, count - 1), max_size=count - 1), "closed")
    picks = draw(st.integers(1, count - len(closed)), "b")
    sizes = chunk_sizes(picks, draw(st.integers(1, picks), "N"))
    plan = Plan(
        sizes, draw(st.sampled_from([1.0, 100.0])), draw(st.sampled_from(Draw)), draw(st.integers(0, 2**64 - 1))
    )
    criterion, loss = draw(st.sampled_from(OWN)), draw(st.sampled_from(Loss))
    return criterion, loss, plan, draw(st.sampled_from([None, 1000])), sorted(closed), count


@settings(deadline=None, max_examples=80)
@given(selection=selections(), seed=st.integers(0, 50))
def test_the_oracle_with_the_same_candidates_closed_picks_the_same(selection, seed):
    criterion, loss, plan, tile_bytes, closed, count = selection
    pair = models(count, width=8, seed=seed)
    scores = PairScores(criterion, *pair, loss, tile_bytes, open=mask(count, closed))
    got = POLICIES["joint"].pick(scores, plan)
    noise = oracle_noise(plan, count)
    if loss is Loss.SIGMOID:
        matrix = oracle_matrix(criterion, *pair)
        want, values = oracle.joint(matrix, plan.sizes, plan.gain, noise, closed)
        assert got.total == pytest.approx(oracle.total(matrix, want), rel=1e-7, abs=1e-7)
    else:
        terms = softmax_terms(criterion, pair)
        want, values = oracle.softmax_joint(terms, plan.sizes, plan.gain, noise, closed)
        assert got.total == pytest.approx(oracle.softmax_total(terms, want), rel=1e-7, abs=1e-7)
    assert got.indices.tolist() == want.tolist()
    np.testing.assert_allclose(got.scores.numpy(), values, rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(selection=selections(), value=st.sampled_from([0.0, 1.0, -1e3]))
def test_nothing_depends_on_what_stands_in_a_closed_candidates_place(selection, value):
    criterion, loss, plan, tile_bytes, closed, count = selection
    pair = models(count, width=8, dtype=torch.float32)
    scores = PairScores(criterion, *pair, loss, tile_bytes, open=mask(count, closed))
    other = replace(
        scores, **{n: with_other_rows(m, closed, value) for n, m in zip(("learner", "reference"), pair, strict=True)}
    )
    for policy in POLICIES.values():
        one, two = (pick_open(policy, s, plan) for s in (scores, other))
        assert one.indices.tolist() == two.indices.tolist()
        assert one.scores.tolist() == two.scores.tolist()
        assert one.total == two.total
        assert not set(closed) & set(one.indices.tolist())
        assert len(set(one.indices.tolist())) == plan.picks
        told = [assess(s.own(), one.indices, plan, BOUNDS, s.open) for s in (scores, other)]
        assert told[0] == told[1]
    assert scores.uniform_total(plan.picks) == other.uniform_total(plan.picks)


@settings(deadline=None, max_examples=40)
@given(selection=selections())
def test_all_open_is_the_same_bit_for_bit_as_nothing_said(selection):
    criterion, loss, plan, tile_bytes, _, count = selection
    scores = PairScores(criterion, *models(count, width=8, dtype=torch.float32), loss, tile_bytes)
    said = scores.with_open(mask(count, ()))
    for policy in POLICIES.values():
        one, two = (pick_open(policy, s, plan) for s in (scores, said))
        assert (one.indices.tolist(), one.scores.tolist(), one.total) == (
            two.indices.tolist(),
            two.scores.tolist(),
            two.total,
        )
        told = [assess(s.own(), one.indices, plan, BOUNDS, s.open) for s in (scores, said)]
        assert told[0] == told[1]
    assert scores.uniform_total(plan.picks) == said.uniform_total(plan.picks)


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("draw", Draw)
def test_scores_of_open_candidates_alone_are_the_same_bit_for_bit_as_those_of_all(loss, draw):
    """Where most candidates are closed, no strips are summed for them."""
    count = 1500
    open_ = torch.from_numpy(np.random.default_rng(1).permutation(count) < 400)
    pair = models(count, width=24, dtype=torch.float32)
    scores = PairScores(Criterion.LEARNABILITY, *pair, loss, open=open_)
    everyones = loss.running(scores.own(), scores.models)
    few = scores.streamed()
    assert isinstance(few, OpenScores)
    assert not isinstance(scores.with_open(open_ | (torch.arange(count) < 600)).streamed(), OpenScores)
    assert few.own[open_].tolist() == scores.own()[open_].tolist()
    assert few.own[~open_].count_nonzero() == 0
    plan = Plan(chunk_sizes(160, 6), 100.0, draw, seed=9)
    one, two = (draw_in_chunks(scores, running, plan, WholePool(scores, plan)) for running in (few, everyones))
    assert one.indices.tolist() == two.indices.tolist()
    assert one.scores.tolist() == two.scores.tolist()
    assert one.total == two.total
    rows = open_.nonzero().flatten()
    both = [loss.running(scores.own(), scores.models), scores.streamed()]
    assert both[0].uniform_total(160, rows) == both[1].uniform_total(160, rows)


def test_draws_among_open_candidates_follow_the_exact_law():
    """Frequencies of ordered draws of two of four open ones among seven, by p_i / (1 - p_taken); chi-square."""
    values = torch.tensor([9.0, 0.0, 0.7, 9.0, -0.5, 1.2, 9.0], dtype=torch.float64)
    open_rows = [1, 2, 4, 5]
    scores = ScalarScores(values, mask(7, {0, 3, 6}))
    p = dict(zip(open_rows, torch.softmax(values[open_rows], 0).tolist(), strict=True))
    trials = 20_000
    counts = dict.fromkeys(itertools.permutations(open_rows, 2), 0)
    for seed in range(trials):
        first, second = Independent().pick(scores, Plan((2,), 1.0, Draw.SAMPLE, seed)).indices.tolist()
        counts[first, second] += 1
    expected = {(i, j): trials * p[i] * p[j] / (1 - p[i]) for i, j in counts}
    assert sum((counts[k] - expected[k]) ** 2 / expected[k] for k in counts) < 31.3  # 99.9 % at 11 degrees of freedom


@pytest.mark.parametrize("tile_bytes", [None, 1000])
def test_what_a_uniform_sub_batch_scores_is_of_the_open_ones(tile_bytes):
    closed = [0, 3, 4, 17, 59]
    scores = PairScores(Criterion.LEARNABILITY, *models(60), tile_bytes=tile_bytes, open=mask(60, closed))
    rows = [i for i in range(60) if i not in closed]
    matrix = oracle_matrix(Criterion.LEARNABILITY, scores.learner, scores.reference)[np.ix_(rows, rows)]
    off = matrix.sum() - np.trace(matrix)
    expected = 6 * np.trace(matrix) / 55 + 6 * 5 * off / (55 * 54)
    assert scores.uniform_total(6) == pytest.approx(expected, rel=1e-9)
    own = ScalarScores(scores.own(), scores.open)
    assert own.uniform_total(6) == pytest.approx(6 * np.diag(matrix).mean())


@pytest.mark.parametrize("loss", Loss)
def test_what_a_uniform_sub_batch_of_many_scores_is_sampled_from_the_open_ones(loss):
    """Closed candidates score far from the others, so that one of them in the sample would show."""
    pair = [with_other_rows(model, range(0, 1200, 2), 5.0) for model in models(1200)]
    scores = PairScores(Criterion.LEARNABILITY, *pair, loss, 10_000)
    alone = scores.at(torch.arange(1, 1200, 2))
    half = scores.with_open(torch.arange(1200) % 2 == 1)
    assert half.uniform_total(50) == pytest.approx(alone.uniform_total(50), rel=1e-9)


def test_quality_is_of_the_open_ones():
    values = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 300))
    open_ = torch.arange(300) % 3 != 0
    rows, plan = open_.nonzero().flatten(), Plan((40,), 2.0, Draw.SAMPLE, 5)
    picks = Independent().pick(ScalarScores(values, open_), plan).indices
    told = assess(values, picks, plan, BOUNDS, open_)
    alone = assess(values[rows], torch.searchsorted(rows, picks), plan, BOUNDS)
    assert (told.picked, told.left, told.top_share) == (alone.picked, alone.left, alone.top_share)
    assert 0 < told.uniform_overlap < 1
    alike = torch.zeros(300, dtype=torch.float64)
    picks = Independent().pick(ScalarScores(alike, open_), plan).indices
    assert assess(alike, picks, plan, BOUNDS, open_).uniform_overlap == 1
    assert sum(told.left.counts) + sum(told.picked.counts) == 200


def test_every_rank_gives_its_share_from_its_own_open_candidates():
    open_ = mask(80, [*range(15), 25, 70])
    scores = PairScores(Criterion.LEARNABILITY, *models(80), open=open_)
    for policy, sizes in (("joint", (8, 8, 4)), ("independent", (20,)), ("uniform", (20,))):
        got = POLICIES[policy].pick(scores, Plan(sizes, 100.0, Draw.SAMPLE, seed=3, ranks=4)).indices
        assert bool(open_[got].all())
        assert torch.bincount(got // 20, minlength=4).tolist() == [5] * 4
    for policy, sizes in (("joint", (8, 8, 8)), ("independent", (24,)), ("uniform", (24,))):
        with pytest.raises(ValueError, match="5 candidates of a rank are open; the plan takes 6 of them"):
            POLICIES[policy].pick(scores, Plan(sizes, 100.0, Draw.SAMPLE, seed=3, ranks=4))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_plan_that_needs_more_than_are_open_is_no_draw(policy):
    scores = PairScores(Criterion.LEARNABILITY, *models(10), open=mask(10, range(7)))
    with pytest.raises(ValueError, match="3 candidates are open; the plan takes 4 of them"):
        pick_open(POLICIES[policy], scores, Plan((4,), 1.0, Draw.SAMPLE, 0))


class Last(Policy):
    """Takes the last of what it is given, and remembers what that was."""

    name, needs = "last", Needs.SCALARS

    def pick(self, scores, plan):
        self.given = scores
        rows = torch.arange(scores.size - plan.picks, scores.size)
        return Picks(rows, scores.own()[rows], scores.total(rows))


class Aware(Last):
    knows_open = True


class Stranger(Last):
    def __init__(self, *rows):
        self.rows = torch.tensor(rows)

    def pick(self, scores, plan):
        return Picks(self.rows, torch.zeros(2), 0.0)


class Changed(Independent):
    def pick(self, scores, plan):
        self.given = scores
        return super().pick(scores, plan)


@pytest.mark.parametrize("kind", ["pairs", "scalars"])
def test_a_policy_that_does_not_know_of_closed_candidates_sees_the_others_only(kind):
    pair = PairScores(Criterion.LEARNABILITY, *models(10), open=mask(10, {0, 4, 8, 9}))
    scores = pair if kind == "pairs" else ScalarScores(pair.own(), pair.open)
    policy, plan = Last(), Plan((2,), 1.0, Draw.SAMPLE, 0)
    got = pick_open(policy, scores, plan)
    assert got.indices.tolist() == [6, 7]
    assert got.total == pytest.approx(scores.total(torch.tensor([6, 7])))
    assert (policy.given.size, policy.given.open) == (6, None)
    np.testing.assert_allclose(policy.given.own(), scores.own()[[1, 2, 3, 5, 6, 7]])
    assert policy.given.uniform_total(2) == pytest.approx(scores.uniform_total(2))
    for row in (-1, 6):
        with pytest.raises(RuntimeError, match=rf"'last' picked \[0, {row}\] … of 6 candidates"):
            pick_open(Stranger(0, row), scores, plan)


def test_a_policy_says_itself_that_it_knows_which_are_open():
    scores = ScalarScores(torch.arange(6.0), mask(6, {5}))
    aware, changed, plan = Aware(), Changed(), Plan((2,), 1.0, Draw.TOP_K, 0)
    pick_open(aware, scores, plan)
    assert aware.given is scores
    assert pick_open(changed, scores, plan).indices.tolist() == [4, 3]
    assert changed.given.size == 5, "a pick of its own may know less than the class that it comes from"
    assert not Changed.knows_open


def test_closed_scores_may_be_anything_finite():
    scores = ScalarScores(torch.tensor([1e38, -1e38, 0.0, 1.0, 3e38]), mask(5, {0, 1, 4}))
    for draw in Draw:
        got = POLICIES["independent"].pick(scores, Plan((2,), 1e6, draw, 0))
        assert sorted(got.indices.tolist()) == [2, 3]
        assert math.isfinite(got.total)
