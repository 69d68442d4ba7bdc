"""Gumbel noise from a counter-based generator, and the draw that uses it.

The noise of a candidate depends on (seed, round, candidate index) alone: not on the device, the batch's layout or
the order of calls. So one process and many shards draw the same picks.
"""

import torch
from torch import Tensor

from selector_server.sampling.plan import Draw, Plan

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def gumbel(seed: int, stream: int, candidates: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [n], for the candidate indices int64 [n] in round `stream` of `seed`.

    SplitMix64 (Steele et al., 2014): the generator's output function on a counter, its key mixed from seed and
    round.
    """
    key = _mix_int(_mix_int(seed & _MASK64) + (stream + 1) * _GOLDEN)
    bits = _mix(candidates * _signed(_GOLDEN) + _signed(key))
    # 53 bits, centred in their cells: never 0, never 1, so both logarithms are finite.
    uniform = (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def open_logits(score: Tensor, taken: Tensor, plan: Plan) -> Tensor:
    """gain * score, float64 [n], kept finite whatever the two are, so that only what is taken already is at -inf."""
    return (score * plan.gain).clamp(min=torch.finfo(score.dtype).min).masked_fill(taken, -torch.inf)


def keys(logits: Tensor, plan: Plan, stream: int, first: int = 0) -> Tensor:
    """What a draw ranks candidates by, float64 [n]: the logits, plus noise unless the draw is top-k.

    `first` is the index of the first of these candidates in the whole super-batch.
    """
    if plan.draw is Draw.TOP_K:
        return logits
    candidates = torch.arange(first, first + len(logits), device=logits.device)
    return logits + gumbel(plan.seed, stream, candidates)


def best(ranking: Tensor, size: int) -> Tensor:
    """Indices int64 [size] of the highest keys, best first; ties go to the lower index.

    Gumbel top-k: adding Gumbel noise to log-weights and taking the top has the law of drawing one after the other
    with p proportional to exp(logit) among those left (Kool et al., 2019), and never exponentiates a score.
    """
    top = torch.topk(ranking, min(size + 1, len(ranking)))
    if bool((top.values[1:] == top.values[:-1]).any()):  # topk breaks ties as it likes
        return torch.sort(ranking, descending=True, stable=True).indices[:size]
    return top.indices[:size]


def draw_chunk(logits: Tensor, size: int, plan: Plan, stream: int) -> Tensor:
    """Indices int64 [size] of one chunk without replacement; -inf marks what must not be drawn.

    With several ranks, the same number from each, rank 0's first.
    """
    ranking = keys(logits, plan, stream)
    if plan.ranks == 1:
        return best(ranking, size)
    share = len(logits) // plan.ranks
    parts = [best(part, size // plan.ranks) + rank * share for rank, part in enumerate(torch.split(ranking, share))]
    return torch.cat(parts)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


def _mix_int(value: int) -> int:
    """The same of one number."""
    value &= _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
