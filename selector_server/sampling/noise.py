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


def draw_chunk(logits: Tensor, size: int, plan: Plan, stream: int) -> Tensor:
    """Indices int64 [size] of one chunk, best first, without replacement; -inf marks what must not be drawn.

    Gumbel top-k: adding Gumbel noise to log-weights and taking the top has the law of drawing one after the other
    with p proportional to exp(logit) among those left (Kool et al., 2019), and never exponentiates a score. Ties
    go to the lower index.
    """
    keys = logits
    if plan.draw is Draw.SAMPLE:
        keys = logits + gumbel(plan.seed, stream, torch.arange(len(logits), device=logits.device))
    return torch.sort(keys, descending=True, stable=True).indices[:size]


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
    return int(_mix(torch.tensor([_signed(value)], dtype=torch.int64)).item()) & _MASK64
