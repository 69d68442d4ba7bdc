"""Prepared tasks of ranks as one: what is copied, and what is counted for it."""

import numpy as np
import pytest
from support.model import POLICIES, plan

from selector_server.encoding.reference_cache import Found
from selector_server.engine.joining import join, joined_bytes
from selector_server.engine.preparation import ModelInput, Prepared
from selector_server.engine.task import Embeddings, ModelEmbeddings, Samples, Task
from selector_server.sampling import Criterion, Loss


def task(candidates, size, rank):
    kind = {"policy": POLICIES["joint"], "criterion": Criterion.LEARNABILITY, "loss": Loss.SIGMOID}
    return Task(candidates, size, plan=plan(3, 2, seed=rank), **kind)


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
    ranks = [Prepared(task(Samples([], [], [b"a"]), 5, rank), one, one) for rank, one in enumerate(inputs)]
    joined = join(ranks)
    assert joined.learner is joined.reference
    np.testing.assert_array_equal(joined.learner.tokens[:, 0], [0] * 5 + [100] * 5)
    assert joined_bytes(ranks) == nbytes(joined.learner)
    assert joined.task.candidates.ids == [b"a", b"a"]
    assert (joined.task.size, joined.task.plan.sizes, joined.task.plan.ranks) == (10, (4, 2), 2)
    assert joined.task.plan.seed == 0


def test_a_rank_whose_references_are_all_known_adds_none():
    inputs = [model_input(2, first) for first in (0, 100)]
    found = [known(True, True), known(False, True)]
    references = [None, inputs[1].at(np.array([0]))]
    samples = Samples([], [], [b"a", b"b"])
    ranks = [Prepared(task(samples, 2, r), inputs[r], references[r], found[r]) for r in (0, 1)]
    joined = join(ranks)
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

    ranks = [Prepared(task(Embeddings(model(r) if with_learner else None, model(r)), 2, r)) for r in (0, 5)]
    candidates = join(ranks).task.candidates
    assert (candidates.learner is not None) == with_learner
    assert candidates.reference.image[:, 0].tolist() == [0, 0, 5, 5]
    assert candidates.reference.text[:, 0].tolist() == [1, 1, 6, 6]
    assert (candidates.reference.scale, candidates.reference.bias) == (10.0, -9.0)
    assert joined_bytes(ranks) == (1 + with_learner) * 2 * 2 * 2 * 3 * 4
