"""The softmax loss through the server, and policies of other packages: served, and never trusted."""

import grpc
import numpy as np
import pytest
import torch
from selector_proto.v1 import selector_pb2 as pb
from support.model import POLICIES, plan
from support.plugins import FIRST, with_policies
from support.ranks import Asking, as_ranks, assert_refused_alike
from support.wire import embeddings, some_embeddings, some_losses

from selector_server.sampling import Criterion, Embedded, Loss, PairScores

PLUGIN = f"""{FIRST}
class Repeats(First):
    name = "repeats"
    def pick(self, scores, plan):
        picks = torch.zeros(plan.picks, dtype=torch.int64)
        return Picks(picks, scores.own()[picks], 0.0)

class Says(First):
    name, knows_open = "says", True
    def pick(self, scores, plan):
        rows = torch.arange(scores.size) if scores.open is None else scores.open.nonzero().flatten()
        picks = rows.flip(0)[:plan.picks]
        return Picks(picks, scores.own()[picks], scores.total(picks))

class Lies(First):
    name, knows_open = "lies", True
    def pick(self, scores, plan):
        return super().pick(scores, plan)
"""
EXCLUDING = {
    "bad_samples": pb.BAD_SAMPLES_EXCLUDE,
    "exclusions": [pb.Exclusion(reason=pb.EXCLUSION_REASON_TEXT, indices=[0, 2, 19])],
}


@pytest.fixture(scope="module")
def with_plugin(start_sidecars, tmp_path_factory):
    """A sidecar in whose environment another package offers policies."""
    env = with_policies(
        tmp_path_factory.mktemp("plugin"), PLUGIN, first="First", repeats="Repeats", says="Says", lies="Lies"
    )
    with start_sidecars() as start:
        yield start(env=env)


def test_the_softmax_loss_is_served(plain_server):
    models = some_embeddings(60)
    reply = plain_server.select(embeddings(*models, loss=pb.LOSS_SOFTMAX, seed=5, chunks=4))
    scores = PairScores(
        Criterion.LEARNABILITY,
        *(Embedded.normalise(*map(torch.from_numpy, (i, t)), s, b) for i, t, s, b in models),
        Loss.SOFTMAX,
    )
    want = POLICIES["joint"].pick(scores, plan(12, 4, seed=5))
    assert list(reply.indices) == want.indices.tolist()
    np.testing.assert_allclose(reply.scores, want.scores.numpy(), rtol=1e-4, atol=1e-5)
    assert reply.objective == pytest.approx(want.total / 12, rel=1e-5)
    assert reply.objective_uniform == pytest.approx(scores.uniform_total(12) / 12, rel=1e-5)


def test_a_foreign_policy_is_listed_and_picks(with_plugin):
    assert {"first", "joint"} <= set(with_plugin.info().policies)
    reply = with_plugin.select(some_losses(policy="first"))
    assert list(reply.indices) == list(range(len(reply.indices)))
    assert reply.policy == "first"
    assert list(reply.chunk_sizes) == [len(reply.indices)]


def test_picks_that_are_no_sub_batch_never_leave_the_server(with_plugin):
    error = with_plugin.refuse(some_losses(policy="repeats"))
    assert error.code().name == "INTERNAL"
    assert "policy 'repeats' did not pick 4 different of" in with_plugin.text
    assert len(with_plugin.select(some_losses(policy="first")).indices) == 4


def test_a_foreign_policy_picks_among_the_open_candidates(with_plugin):
    reply = with_plugin.select(some_losses(policy="first", **EXCLUDING))
    assert list(reply.indices) == [1, 3, 4, 5]
    assert list(reply.exclusions[0].indices) == [0, 2, 19]
    assert list(with_plugin.select(some_losses(policy="says", **EXCLUDING)).indices) == [18, 17, 16, 15]


def test_closed_candidates_never_leave_the_server(with_plugin):
    error = with_plugin.refuse(some_losses(policy="lies", **EXCLUDING))
    assert error.code().name == "INTERNAL"
    assert "policy 'lies' picked candidates that may not be picked" in with_plugin.text


def test_ranks_by_a_foreign_policy_need_as_many_open_candidates_each(with_plugin):
    requests = as_ranks(
        [some_losses(policy="first", **EXCLUDING), some_losses(policy="first", bad_samples=pb.BAD_SAMPLES_EXCLUDE)]
    )
    answers = Asking(with_plugin, requests).answers()
    text = "needs as many usable candidates on every rank; they have [17, 20]"
    assert_refused_alike(answers, grpc.StatusCode.FAILED_PRECONDITION, text)
