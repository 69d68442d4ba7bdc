"""By every rule ranks pick what one process picks, in one sidecar and in one each."""

import math

import grpc
import numpy as np
import pytest
import torch
from support.model import POLICIES
from support.ranks import Asking, all_embedded, as_ranks, assert_refused_alike, balanced, models_of, shares, together
from support.rules import (
    COUNT,
    EASY,
    HARD,
    LEARNABILITY,
    MIXED,
    NONE,
    PICKS,
    PIXELS,
    REFERENCE,
    TOKENS,
    arrays_of,
    bring,
    cosines,
    kept,
    scored,
)
from support.wire import embeddings, raw
from test_peers import Circle

from selector_server.sampling import Plan, chunk_sizes

GRID = {
    "mixed": MIXED,
    "no pairs": {"pair_criterion": NONE},
    "other pairs": {"criterion": EASY, "pair_criterion": HARD},
    "prefiltered": {"prefilter": 1.5, **MIXED},
    "apart": {"max_similarity": 0.45, "pair_criterion": HARD},
    "partly uniform": {"explore": 0.3},
    "all of it": {"prefilter": 2.5, "max_similarity": 0.5, "explore": 0.2, "return_losses": True, **MIXED},
}
GAIN, CHUNKS, SEED = 5.0, 3, 7


def one_process(models, fields):
    """What one process picks for all ranks: indices and scores for each, and its scores."""
    ranks = len(models)
    scores = all_embedded(models)
    scores = scored(
        fields.get("criterion", LEARNABILITY),
        fields.get("pair_criterion"),
        arrays_of(scores.learner),
        arrays_of(scores.reference),
        max_similarity=fields.get("max_similarity"),
    )
    if "prefilter" in fields:
        most = math.floor(fields["prefilter"] * PICKS)
        scores = scores.with_open(torch.cat([kept(cosines(reference), most) for _, reference in models]))
    explored = math.floor(fields.get("explore", 0) * PICKS + 1e-6)
    sizes = tuple(ranks * size for size in chunk_sizes(PICKS - explored, CHUNKS))
    wanted = Plan(sizes, GAIN, balanced(1, 1, 1, 0).draw, SEED, ranks, ranks * explored)
    return list(shares(POLICIES["joint"].pick(scores, wanted), COUNT, ranks)), explored, scores


def requests_of(models, fields):
    return [embeddings(*one, seed=SEED, chunks=CHUNKS, gain=GAIN, **fields) for one in models]


def assert_as_one_process(replies, models, fields):
    wanted, explored, scores = one_process(models, fields)
    learner, reference = scores.own_losses()
    for rank, (reply, (indices, values)) in enumerate(zip(replies, wanted, strict=True)):
        assert list(reply.indices) == indices
        np.testing.assert_allclose(reply.scores, values, rtol=1e-4, atol=1e-4)
        assert reply.explored == explored
        rows = [rank * COUNT + index for index in indices]
        if "return_losses" in fields:
            np.testing.assert_allclose(reply.learner_losses, learner[rows], rtol=1e-4)
            np.testing.assert_allclose(reply.reference_losses, reference[rows], rtol=1e-4)
        assert reply.HasField("prefiltered") == ("prefilter" in fields)
        if "prefilter" in fields:
            assert reply.prefiltered.left_out == COUNT - math.floor(fields["prefilter"] * PICKS)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("fields", GRID.values(), ids=GRID)
def test_ranks_in_one_sidecar_pick_by_a_rule_as_one_process_does(plain_server, fields, ranks):
    models = models_of(ranks, COUNT)
    requests = requests_of(models, fields)
    replies = together(plain_server, requests) if ranks > 1 else [plain_server.select(requests[0])]
    assert_as_one_process(replies, models, fields)


@pytest.fixture(scope="module")
def pair(start_sidecars):
    with start_sidecars() as start:
        yield Circle(start, 2)


@pytest.mark.parametrize("fields", GRID.values(), ids=GRID)
def test_sidecars_pick_by_a_rule_as_one_process_does(pair, fields):
    models = models_of(2, COUNT)
    replies = pair.ask(as_ranks(requests_of(models, fields)))
    assert_as_one_process(replies, models, fields)


def test_ranks_bring_what_the_reference_makes_of_their_samples(plain_server):
    models = models_of(2, COUNT)
    fields = {"criterion": EASY, "prefilter": 2.5, "explore": 0.2}
    requests = [
        bring(raw(PIXELS, TOKENS, seed=SEED, chunks=CHUNKS, gain=GAIN, **fields), reference, "x")
        for _, reference in models
    ]
    assert_as_one_process(together(plain_server, requests), models, fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pair_criterion": NONE}, ("pair_criterion", "EASY_REFERENCE", "NONE")),
        ({"prefilter": 2.0}, ("prefilter", "None", "2.0")),
        ({"max_similarity": 0.25}, ("max_similarity", "None", "0.25")),
        ({"explore": 0.5}, ("uniform picks (explore)", "0", "4")),
        ({"return_losses": True}, ("return_losses", "False", "True")),
        ("fingerprint", ("samples.reference.fingerprint", "x", "y")),
        ("width", ("samples.reference.embeddings.image", "float32 [B, 8]", "float32 [B, 4]")),
        ("scale", ("samples.reference.embeddings.logit_scale", "25.0", "3.0")),
    ],
)
def test_ranks_that_do_not_have_one_rule_are_told_so(plain_server, change, said):
    requests = []
    for rank in (0, 1):
        image, text, scale, bias = REFERENCE
        if rank and change in ("width", "scale"):
            image, text = (image[:, :4], text[:, :4]) if change == "width" else (image, text)
            scale = 3.0 if change == "scale" else scale
        fields = change if rank and isinstance(change, dict) else {}
        one = raw(PIXELS, TOKENS, **({"criterion": EASY, "pair_criterion": EASY} | fields))
        requests.append(bring(one, (image, text, scale, bias), "y" if rank and change == "fingerprint" else "x"))
    answers = Asking(plain_server, as_ranks(requests)).answers()
    field, *values = said
    told = [f"{value} on rank {rank}" for rank, value in enumerate(values)]
    assert_refused_alike(answers, grpc.StatusCode.INVALID_ARGUMENT, f"{field} is ", *told)
