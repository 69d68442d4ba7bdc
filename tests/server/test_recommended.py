"""Requests that leave the rule to the server (docs/adr/0025): the same as if they had named it."""

import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import embed
from support.processes import eventually
from support.rules import (
    COUNT,
    EASY,
    HARD,
    LEARNABILITY,
    LEARNER,
    NONE,
    PIXELS,
    REFERENCE,
    TOKENS,
    arrays_of,
    bring,
    name,
)
from support.wire import Request, embeddings, raw, some_losses

RULE = {"policy": "joint", "criterion": LEARNABILITY, "pair_criterion": EASY, "gain": 1.0, "prefilter": 2.5}
PICKS = 5
USUAL = {"seed": 3, "sub_batch_size": PICKS, "chunks": 2}


def shown(reply: pb.SelectResponse) -> tuple[object, ...]:
    return list(reply.indices), list(reply.scores), reply.policy, reply.pair_criterion, reply.prefiltered.left_out


def of_embeddings(**fields) -> Request:
    return embeddings(LEARNER, REFERENCE, **USUAL | fields)


def test_embeddings(plain_server):
    reply = plain_server.select(of_embeddings(recommended=True))
    assert shown(reply) == shown(plain_server.select(of_embeddings(**RULE)))
    assert reply.prefiltered.left_out == COUNT - int(2.5 * PICKS)
    published = plain_server.select(of_embeddings())
    assert shown(published) == shown(plain_server.select(of_embeddings(policy="joint", gain=100.0)))
    assert shown(reply) != shown(published)


@pytest.mark.parametrize(
    "own",
    [{"gain": 7.0}, {"pair_criterion": LEARNABILITY}, {"pair_criterion": NONE}, {"prefilter": 4.0}, {"chunks": 1}],
)
def test_what_is_set_stays(plain_server, own):
    reply = plain_server.select(of_embeddings(**{"recommended": True} | own))
    assert shown(reply) == shown(plain_server.select(of_embeddings(**RULE | own)))


@pytest.mark.parametrize(
    "own",
    [
        {"policy": "joint"},
        {"policy": "independent"},
        {"criterion": HARD},
        {"criterion": EASY},
        {"loss": pb.LOSS_SOFTMAX},
    ],
)
def test_a_rule_of_its_own_is_as_it_was(plain_server, own):
    asked = {"recommended": True} | own
    assert shown(plain_server.select(of_embeddings(**asked))) == shown(plain_server.select(of_embeddings(**own)))


def test_losses_are_as_they_were(plain_server):
    asked, plain = (some_losses(policy="uniform", recommended=value) for value in (True, False))
    assert shown(plain_server.select(asked)) == shown(plain_server.select(plain))
    asked, plain = (some_losses(recommended=value) for value in (True, False))
    assert shown(plain_server.select(asked)) == shown(plain_server.select(plain))


def of_samples(ids=(), **fields) -> Request:
    request = raw(PIXELS, TOKENS, **USUAL | fields)
    return name(request, ids) if len(ids) else request


def test_samples_whose_losses_nobody_can_know_are_not_prefiltered(server):
    rule = {key: value for key, value in RULE.items() if key != "prefilter"}
    for ids in ((), range(COUNT)):
        reply = server.select(of_samples(ids, recommended=True))
        assert not reply.HasField("prefiltered")
        assert shown(reply) == shown(server.select(of_samples(ids, **rule)))


def test_samples_that_a_cache_may_know_are_prefiltered(sidecar, bundles, tmp_path):
    server = sidecar(bundles.flags | {"cache": tmp_path / "cache"})
    assert not server.select(of_samples(recommended=True)).HasField("prefiltered")
    assert server.select(of_samples(range(COUNT), recommended=True)).prefiltered.unknown == COUNT
    eventually(lambda: server.select(of_samples(range(COUNT), recommended=True)).prefiltered.known == COUNT)
    reply = server.select(of_samples(range(COUNT), recommended=True))
    assert shown(reply) == shown(server.select(of_samples(range(COUNT), **RULE)))
    lists = [
        server.stub.Shortlist(iter(name(Request(), range(COUNT)).set(**USUAL | fields).messages()), timeout=30)
        for fields in ({"recommended": True}, RULE)
    ]
    assert lists[0] == lists[1]
    assert len(lists[0].indices) == int(2.5 * PICKS)


def test_samples_that_come_with_embeddings_are_prefiltered(server, bundles):
    brought = arrays_of(embed(bundles.reference, PIXELS, TOKENS))
    fingerprint = server.info().reference.fingerprint
    reply, named = (
        server.select(bring(of_samples(**fields), brought, fingerprint)) for fields in ({"recommended": True}, RULE)
    )
    assert reply.prefiltered.known == COUNT
    assert shown(reply) == shown(named)
