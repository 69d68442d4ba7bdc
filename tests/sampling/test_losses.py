"""The table of losses, and what each entry promises to the sampler whatever it computes."""

from dataclasses import dataclass, fields

import pytest
import torch
from selector_proto.v1 import selector_pb2 as pb

from selector_server.sampling import Criterion, Draw, Embedded, Loss, PairScores, Plan, chunk_sizes
from selector_server.sampling.losses.base import Chunk
from selector_server.sampling.sharded import OWN, _record


def scores(loss, count=90, **options):
    generator = torch.Generator().manual_seed(3)
    sides = torch.randn(4, count, 16, generator=generator, dtype=torch.float64)
    sides /= sides.norm(dim=2, keepdim=True)
    learner, reference = Embedded(*sides[:2], 10.0, -10.0), Embedded(*sides[2:], 25.0, -7.5)
    return PairScores(Criterion.LEARNABILITY, learner, reference, loss, **options)


def test_table_and_contract_have_the_same_losses():
    contract = {name.removeprefix("LOSS_") for name, code in pb.Loss.items() if code}
    assert contract == {loss.name for loss in Loss}
    assert all(Loss(loss.name.lower()) is loss for loss in Loss)


@pytest.mark.parametrize("loss", Loss)
def test_chunks_one_by_one_total_what_the_whole_batch_does(loss):
    ours = scores(loss)
    rows = torch.randperm(ours.size, generator=torch.Generator().manual_seed(0))[:30]
    for running in (ours.running(), ours.streamed()):
        first, second, last = torch.split(rows, 10)
        running.add(ours.chunk(first))
        running.add(ours.chunk(second))
        assert running.finish(ours.chunk(last)) == pytest.approx(ours.total(rows), rel=1e-9)


@pytest.mark.parametrize("loss", Loss)
def test_pairs_if_a_loss_has_them_are_what_strips_add(loss):
    ours = scores(loss, tile_bytes=1000)
    pairs = loss.running.pairs(ours.models)
    if pairs is None:
        assert type(scores(loss).running()) is loss.running
        return
    running, rows = ours.streamed(), torch.tensor([5, 80, 2])
    own = running.scores()
    running.add(ours.chunk(rows))
    others = torch.ones(ours.size, dtype=torch.bool)
    others[rows] = False
    added = (running.scores() - own)[others]
    torch.testing.assert_close(pairs[rows].sum(dim=0)[others].double(), added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", Loss)
def test_shards_parts_add_up(loss):
    whole = scores(loss)
    parts = [torch.arange(0, 40), torch.arange(40, 90)]
    picks = torch.tensor([3, 70, 41, 0, 88])
    models = [model.at(picks) for _, model in whole.models]
    total = 0.0
    for rows in parts:
        mine = PairScores(whole.criterion, whole.learner.at(rows), whole.reference.at(rows), loss)
        here = picks[torch.isin(picks, rows)] - rows[0]
        total += mine.streamed().finish(Chunk(models, here))
    assert total == pytest.approx(whole.total(picks), rel=1e-9)


def test_a_new_option_is_among_what_shards_compare():
    @dataclass(frozen=True)
    class MoreScores(PairScores):
        new_option: int = 7

    @dataclass(frozen=True)
    class MorePlan(Plan):
        newer: str = "x"

    plain = scores(Loss.SIGMOID)
    plan = MorePlan(chunk_sizes(10, 2), 100, Draw.SAMPLE, 1)
    record = _record(MoreScores(plain.criterion, plain.learner, plain.reference), plan)
    assert (record["new option"], record["newer"], record["gain"]) == ("7", "x", "100.0")
    assert {field.name for field in fields(PairScores)} >= OWN
