"""What a draw made of its candidates, by each one's own score: a few sums over B candidates, once a request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selector_server.sampling.noise import draw_chunk, gumbel
from selector_server.sampling.plan import Draw, Plan

# `top_share` is what this part of the candidates, the best, holds.
TOP = 0.2


@dataclass(frozen=True)
class Spread:
    """The own scores of some candidates: `counts` of those up to each bound and above the last, and their sum `total`,
    in nats."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True)
class Quality:
    """The own scores of the picks and of what was left.

    `top_share` is what the best fifth of the candidates holds of all scores above 0; None if none is above 0.
    `uniform_overlap` is the share of the first chunk's picks that a uniform draw with the same noise takes too, near 1
    where scores decide nothing; None for draws without noise.
    """

    picked: Spread
    left: Spread
    top_share: float | None
    uniform_overlap: float | None


def assess(
    own: Tensor, picks: Tensor, plan: Plan | None, bounds: Sequence[float], open_: Tensor | None = None
) -> Quality:
    """Compares the picks, int64 [b] in draw order, with all open candidates by their own scores, float64 [B].

    They are open where `open_`, bool [B], says so; without it all are. They are counted between the ascending `bounds`,
    in nats. Without the plan of the draw there is no overlap. Only one small tensor leaves the device.
    """
    edges = torch.tensor(bounds, dtype=own.dtype, device=own.device)
    pool_scores, chosen = own if open_ is None else own[open_], own[picks]
    worth = pool_scores.clamp(min=0)
    best = torch.topk(worth, math.ceil(TOP * len(worth)), sorted=False).values
    drawn = plan is not None and plan.draw is Draw.SAMPLE
    both = _uniform_too(own, picks, plan, open_) if plan is not None and drawn else own.new_zeros(())
    buckets = [torch.bucketize(scores, edges) for scores in (pool_scores, chosen)]
    counts = [torch.bincount(rows, minlength=len(bounds) + 1) for rows in buckets]
    sums = torch.stack([pool_scores.sum(), chosen.sum(), worth.sum(), best.sum(), both])
    numbers = torch.cat([*counts, sums]).tolist()
    pool, picked = ([int(count) for count in numbers[at : at + len(bounds) + 1]] for at in (0, len(bounds) + 1))
    total, chosen_total, worth_total, best_total, both_count = numbers[-5:]
    return Quality(
        picked=Spread(tuple(picked), chosen_total),
        left=Spread(tuple(a - b for a, b in zip(pool, picked, strict=True)), total - chosen_total),
        top_share=best_total / worth_total if worth_total > 0 else None,
        uniform_overlap=both_count / plan.sizes[0] if plan is not None and drawn else None,
    )


def _uniform_too(own: Tensor, picks: Tensor, plan: Plan, open_: Tensor | None) -> Tensor:
    """How many of the first chunk's picks are drawn if every open candidate scores alike, too; float64 []. Uniform
    picks, which come before that chunk, are not among them."""
    explored, first, taken = picks[: plan.explore], plan.sizes[0], torch.zeros_like(own)
    noise = gumbel(plan.seed, 0, torch.arange(len(own), device=own.device))
    if open_ is not None:
        noise = noise.masked_fill(~open_, -torch.inf)
    noise[explored] = -torch.inf
    taken[draw_chunk(noise, first, plan)] = 1
    return taken[picks[plan.explore : plan.explore + first]].sum()
