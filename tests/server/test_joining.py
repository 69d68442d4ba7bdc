"""Prepared tasks of ranks as one: what must be equal, what is copied, and what is counted for it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from support.model import POLICIES, plan

from selector_server.encoding.reference_cache import Found
from selector_server.engine.candidates.embeddings import Embeddings, ModelEmbeddings
from selector_server.engine.candidates.preparation import ModelInput
from selector_server.engine.candidates.samples import PreparedSamples
from selector_server.engine.closed import ALL_OPEN, Closed
from selector_server.engine.ranks.joining import (
    RankSettings,
    check_alike,
    join,
    joined_bytes,
    joint_plan,
    rank_settings,
)
from selector_server.engine.task import Rule, Task
from selector_server.errors import Exclusion, InvalidRequest
from selector_server.sampling import Criterion, Loss
from selector_server.weights.freshness import Freshness


def task(candidates, rank):
    kind = {"policy": POLICIES["joint"], "rule": Rule(Criterion.LEARNABILITY, Criterion.LEARNABILITY, Loss.SIGMOID)}
    return Task(candidates, plan=plan(3, 2, seed=rank), **kind)


def model_input(size, first):
    pixels = np.arange(first, first + size * 12, dtype=np.uint8).reshape(size, 2, 2, 3)
    return ModelInput(pixels, np.full((size, 4), first, np.int64))


def known(*rows):
    vectors = np.ones((sum(rows), 8), np.float16)
    return Found(np.array(rows, np.bool_), vectors, vectors)


def nbytes(*inputs):
    return sum(one.pixels.nbytes + one.tokens.nbytes for one in inputs)


def test_an_input_of_both_models_is_joined_once():
    inputs = [model_input(5, first) for first in (0, 100)]
    ranks = [task(PreparedSamples(5, [b"a"], one, one), rank) for rank, one in enumerate(inputs)]
    joined = join(ranks)
    assert joined.candidates.learner is joined.candidates.reference
    np.testing.assert_array_equal(joined.candidates.learner.tokens[:, 0], [0] * 5 + [100] * 5)
    assert joined_bytes(ranks) == nbytes(joined.candidates.learner)
    assert joined.candidates.ids == [b"a", b"a"]
    assert (joined.size, joined.plan.sizes, joined.plan.ranks) == (10, (4, 2), 2)
    assert joined.plan.seed == 0


def test_a_rank_whose_references_are_all_known_adds_none():
    inputs = [model_input(2, first) for first in (0, 100)]
    found = [known(True, True), known(False, True)]
    references = [None, inputs[1].at(np.array([0]))]
    ids = [b"a", b"b"]
    ranks = [task(PreparedSamples(2, ids, inputs[r], references[r], found[r]), r) for r in (0, 1)]
    joined = join(ranks).candidates
    assert joined.found.known.tolist() == [True, True, False, True]
    assert len(joined.found.image) == len(joined.found.text) == 3
    assert len(joined.learner.pixels) == 4
    np.testing.assert_array_equal(joined.reference.tokens, [[100] * 4])
    vectors = joined.found.image.nbytes + joined.found.text.nbytes
    assert joined_bytes(ranks) == nbytes(joined.learner, joined.reference) + vectors


@pytest.mark.parametrize("with_learner", [True, False])
def test_embeddings(with_learner):
    def model(first):
        return ModelEmbeddings(*(np.full((2, 3), first + side, np.float32) for side in (0, 1)), 10.0, -9.0)

    ranks = [task(Embeddings(model(r) if with_learner else None, model(r)), r) for r in (0, 5)]
    candidates = join(ranks).candidates
    assert (candidates.learner is not None) == with_learner
    assert candidates.reference.image[:, 0].tolist() == [0, 0, 5, 5]
    assert candidates.reference.text[:, 0].tolist() == [1, 1, 6, 6]
    assert (candidates.reference.scale, candidates.reference.bias) == (10.0, -9.0)
    assert joined_bytes(ranks) == (1 + with_learner) * 2 * 2 * 2 * 3 * 4


def test_losses_of_the_learner_that_came_with_embeddings():
    losses = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    candidates = join([task(replace(embedded(), learner_losses=own), r) for r, own in enumerate(losses)]).candidates
    assert candidates.learner_losses.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_closed_candidates_are_joined_and_shared_out():
    closed = [Closed({1: Exclusion.TEXT, 4: Exclusion.TEXT}, {Exclusion.TEXT: (1, "one")}), ALL_OPEN]
    closed.append(
        Closed({0: Exclusion.VALUE, 2: Exclusion.TEXT}, {Exclusion.VALUE: (0, "v"), Exclusion.TEXT: (2, "t")})
    )
    inputs = [model_input(5, 50 * rank).at(part.open_rows(5)) for rank, part in enumerate(closed)]
    ranks = [task(PreparedSamples(5, [], one, one, None, part), 0) for one, part in zip(inputs, closed, strict=True)]
    joined = join(ranks).candidates
    assert joined.closed.counts == {Exclusion.TEXT: 3, Exclusion.VALUE: 1}
    assert joined.closed.indices(Exclusion.TEXT) == [1, 4, 12]
    assert joined.closed.first == {Exclusion.TEXT: (1, "one"), Exclusion.VALUE: (10, "v")}
    assert joined.learner is joined.reference
    assert joined.learner.tokens[:, 0].tolist() == [0] * 3 + [50] * 5 + [100] * 3
    np.testing.assert_array_equal(joined.learner.pixels[:3], inputs[0].pixels[[0, 2, 3]])
    assert joined_bytes(ranks) == nbytes(joined.learner)


# What ranks must share


@dataclass(frozen=True)
class LaterEmbeddings(Embeddings):
    """A form that got another option."""

    margin: float = 0.0


@dataclass(frozen=True)
class LaterFreshness(Freshness):
    """Staleness that got another option."""

    patience: float = 0.0


def embedded(width=3, **later):
    sides = (np.zeros((2, width), np.float32), np.zeros((2, width), np.float16))
    return (LaterEmbeddings if later else Embeddings)(None, ModelEmbeddings(*sides, 10.0, -9.0), **later)


def refusal(first, second):
    with pytest.raises(InvalidRequest) as caught:
        check_alike(rank_settings(0, first), rank_settings(1, second))
    return str(caught.value)


def test_an_option_that_is_added_later_is_compared():
    first, second = (task(embedded(margin=margin), 0) for margin in (0.0, 0.5))
    assert refusal(first, second).startswith("embeddings.margin is 0.0 on rank 0 and 0.5 on rank 1")
    first, second = (replace(task(embedded(), 0), freshness=LaterFreshness(patience=p)) for p in (1.0, 2.0))
    assert refusal(first, second).startswith("patience is 1.0 on rank 0 and 2.0 on rank 1")


@dataclass(frozen=True)
class LaterTask(Task):
    """A task with an option that nobody said how to compare."""

    tags: set = frozenset({1})


def test_an_option_that_cannot_be_compared_is_an_error_not_an_equal():
    later = LaterTask(**vars(task(embedded(), 0)))
    with pytest.raises(TypeError, match="the setting tags is a frozenset; say here how ranks compare it"):
        rank_settings(0, later)


def test_a_model_on_one_rank_only_is_told_from_either_side():
    one, other = task(embedded(), 0), task(Embeddings(embedded().reference, embedded().reference), 0)
    for first, second in ((one, other), (other, one)):
        assert "embeddings.learner" in refusal(first, second)
        assert "missing" in refusal(first, second)
    assert "embeddings.reference.image is float32 [B, 3] on rank 0 and float32 [B, 4]" in refusal(
        one, task(embedded(width=4), 0)
    )


def test_a_setting_of_the_later_rank_only_is_told():
    with pytest.raises(InvalidRequest, match="margin is missing on rank 0 and 2 on rank 3; must be the same"):
        check_alike(RankSettings(0, {}), RankSettings(3, {"margin": 2}))


def test_ids_are_set_on_all_ranks_or_on_none():
    first, second = (task(PreparedSamples(1, ids, model_input(1, 0)), 0) for ids in ([b"a"], []))
    assert refusal(first, second).startswith("sample_ids is set on rank 0 and unset on rank 1")
    assert refusal(second, first).startswith("sample_ids is unset on rank 0 and set on rank 1")


def test_a_joint_plan_has_the_seed_that_it_is_given():
    joint = joint_plan(plan(3, 2, seed=1), ranks=4, seed=9)
    assert (joint.sizes, joint.ranks, joint.seed) == ((8, 4), 4, 9)


def test_what_a_rank_has_for_itself_is_not_compared():
    fresh = [Freshness(trainer_step=step) for step in (1, 2)]
    first, second = (replace(task(embedded(), seed), freshness=f) for seed, f in enumerate(fresh))
    check_alike(rank_settings(0, first), rank_settings(1, second))
    prepared = [task(PreparedSamples(2, [b"a", b"b"], model_input(2, n)), n) for n in (0, 100)]
    check_alike(*(rank_settings(rank, one) for rank, one in enumerate(prepared)))
