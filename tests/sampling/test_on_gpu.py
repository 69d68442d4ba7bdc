"""The sampler on a CUDA device picks what it picks on a CPU; skipped, out loud, where there is none."""

import pytest
import torch
from test_sampling import OWN, POLICIES, both_ways, models

from selector_server.sampling import Draw, Embedded, Loss, PairScores, Plan, ScalarScores, chunk_sizes
from selector_server.sampling.losses import kernel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SIZES = [(96, 20, 5), (1000, 200, 16), (40, 11, 1)]


def moved(pair):
    return [Embedded(model.image.cuda(), model.text.cuda(), model.scale, model.bias) for model in pair]


def check_same(policy, pair, plan, criterion, **settings):
    on_cpu, on_gpu = (PairScores(criterion, *both, **settings) for both in (pair, moved(pair)))
    want, got = POLICIES[policy].pick(on_cpu, plan), POLICIES[policy].pick(on_gpu, plan)
    assert got.indices.is_cuda
    assert got.indices.tolist() == want.indices.tolist()
    torch.testing.assert_close(got.scores.cpu(), want.scores, rtol=1e-9, atol=1e-9)
    assert got.total == pytest.approx(want.total, rel=1e-9)
    assert on_gpu.uniform_total(plan.sizes[0]) == pytest.approx(on_cpu.uniform_total(plan.sizes[0]), rel=1e-5)


@both_ways
@pytest.mark.parametrize("criterion", OWN)
@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize(("count", "picks", "chunks"), SIZES)
def test_joint_picks_the_same(criterion, draw, loss, count, picks, chunks, tile_bytes):
    plan = Plan(chunk_sizes(picks, chunks), 5.0, draw, seed=7)
    check_same("joint", models(count), plan, criterion, loss=loss, tile_bytes=tile_bytes)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_picks_the_same(policy):
    check_same(policy, models(1000), Plan((100,), 5.0, Draw.SAMPLE, seed=7), OWN[0])


@both_ways
@pytest.mark.parametrize("loss", Loss)
def test_picks_apart_of_those_that_are_open_are_the_same(loss, tile_bytes):
    pair, recent = models(1000), models(100, seed=5)[1]
    open_ = torch.arange(1000) % 3 != 1
    plan = Plan(chunk_sizes(200, 8), 5.0, Draw.SAMPLE, seed=7)
    settings = {"loss": loss, "tile_bytes": tile_bytes, "max_similarity": 0.7}
    on_cpu = PairScores(OWN[0], *pair, recent=recent, open=open_, **settings)
    on_gpu = PairScores(OWN[0], *moved(pair), recent=moved([recent])[0], open=open_.cuda(), **settings)
    want, got = (POLICIES["joint"].pick(scores, plan) for scores in (on_cpu, on_gpu))
    assert got.indices.tolist() == want.indices.tolist()


def test_one_score_a_candidate_picks_the_same():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = Plan((100,), 5.0, Draw.SAMPLE, seed=7)
    want, got = (POLICIES["independent"].pick(ScalarScores(some), plan) for some in (values, values.cuda()))
    assert got.indices.tolist() == want.indices.tolist()


def test_in_float32_a_draw_wins_as_much():
    """Where near-equal candidates swap, the sub-batch is another, and as good."""
    pair = models(4096, 64, dtype=torch.float32)
    plan = Plan(chunk_sizes(820, 16), 100.0, Draw.SAMPLE, seed=7)
    on_cpu, on_gpu = PairScores(OWN[0], *pair), PairScores(OWN[0], *moved(pair))
    want, got = POLICIES["joint"].pick(on_cpu, plan), POLICIES["joint"].pick(on_gpu, plan)
    won = want.total - on_cpu.uniform_total(820)
    assert on_cpu.total(got.indices.cpu()) == pytest.approx(want.total, abs=0.002 * won)
    assert got.total == pytest.approx(on_cpu.total(got.indices.cpu()), abs=0.002 * won)


def test_the_fused_draw_loses_nothing():
    if not kernel.available(torch.device("cuda")):
        pytest.skip("NOT RUN: no CUDA device of capability 9.0 with Triton, so the fused draw is untested here")
    pair = moved(models(4096, 64, dtype=torch.float32))
    plan = Plan(chunk_sizes(820, 16), 100.0, Draw.SAMPLE, seed=7)
    plain, fused = (PairScores(OWN[0], *pair, fused=either) for either in (False, True))
    want, got = POLICIES["joint"].pick(plain, plan), POLICIES["joint"].pick(fused, plan)
    won, exact = want.total - plain.uniform_total(820), plain.total(got.indices)
    assert exact == pytest.approx(want.total, abs=0.01 * won)
    assert got.total == pytest.approx(exact, abs=0.01 * won)
