# ruff: noqa: T201
"""Measures whole joint draws on a CUDA device, plain and by the fused kernel, and what the device can do at most. It
prints one JSON object.

    python benchmarks/draws.py
"""

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from selector_tools.bench.measuring import describe, seconds_of
from selector_tools.bench.synthetic import candidates

from selector_server.sampling import Draw, PairScores, Picks, Plan, chunk_sizes
from selector_server.sampling.policies import Joint

# Candidates, width of the embeddings, share not picked. The first two are of the paper's size.
SETTINGS = ((163_840, 768, 0.8), (163_840, 768, 0.9), (32_768, 512, 0.8), (16_384, 256, 0.8))
CHUNKS, GAIN, REPEATS = 16, 100.0, 3
SIDE = 8192  # of the matrices whose product is timed


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` calls, after one that does not count."""

    def finished() -> None:
        call()
        torch.cuda.synchronize()

    return [seconds_of(finished) for _ in range(1 + repeats)][1:]


def ceilings() -> dict[str, float]:
    """Returns the rates of a copy, bytes read and written, and of products of two matrices."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    rates = {"copy_TB_per_s": 2 * source.nbytes / median(timed(lambda: target.copy_(source), 10)) / 1e12}
    for name, dtype in (("bf16_TFLOP_per_s", torch.bfloat16), ("fp32_TFLOP_per_s", torch.float32)):
        one, other = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
        rates[name] = 2 * SIDE**3 / median(timed(lambda a=one, b=other: a @ b, 20)) / 1e12
    return rates


def draw(scores: PairScores, plan: Plan) -> tuple[dict[str, Any], Picks]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: Joint().pick(scores, plan), REPEATS)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    picks = Joint().pick(scores, plan)
    exact = replace(scores, fused=False).total(picks.indices)
    figures = {"seconds": seconds, "median": median(seconds), "peak_mib": peak}
    return figures | {"total": picks.total, "exact_total": exact}, picks


def compare(size: int, width: int, filter_ratio: float) -> dict[str, Any]:
    count = round(size * (1 - filter_ratio))
    plan = Plan(chunk_sizes(count, CHUNKS), GAIN, Draw.SAMPLE, 0)
    scores = candidates(size, width, 0, "cuda")
    (plain, ours), (fused, theirs) = (draw(replace(scores, fused=either), plan) for either in (False, True))
    shared = len(set(ours.indices.tolist()) & set(theirs.indices.tolist())) / count
    uniform = scores.uniform_total(count)
    return {"plain": plain, "fused": fused, "shared_picks": shared, "uniform_total": uniform}


if __name__ == "__main__":
    result = describe("cuda") | ceilings()
    print(json.dumps(result | {f"B={b} D={d} f={f}": compare(b, d, f) for b, d, f in SETTINGS}))
