"""Gumbel noise from a counter-based generator, and the draw that uses it.

The noise of a candidate depends on (seed, round, candidate index) alone: not on the device, the batch's layout or
the order of calls. So one process and many shards draw the same picks.
"""

import torch
from torch import Tensor

from selector_server.sampling.plan import Draw, Plan

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# The noise of uniform picks is of no round: no plan has so many (docs/adr/0021).
EXPLORE_STREAM = 1 << 32
# So much noise is made at once: more would not be faster, and would be most of a large super-batch's memory.
NOISE_AHEAD = 1 << 16


def gumbel(seed: int, stream: int, candidates: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [n], for the candidate indices int64 [n] in round `stream` of `seed`.

    It is SplitMix64 (Steele et al., 2014): the generator's output function on a counter whose key is mixed from seed
    and round.
    """
    return _gumbel(seed, range(stream, stream + 1), candidates)[0]


class Keys:
    """What the draws of a plan rank candidates by: logits plus noise, unless the draw is top-k."""

    def __init__(self, plan: Plan, count: int, device: torch.device, first: int = 0) -> None:
        """`first` is the index in the whole super-batch of the first of these `count` candidates."""
        self._plan, places = plan, plan.positions
        self._candidates = torch.arange(first, first + count, device=device) if places is None else places.to(device)
        self._made = range(0)
        self._noise: Tensor

    def of(self, logits: Tensor, round_: int) -> Tensor:
        """The keys of a round, float64 [n], for logits float64 [n]. Rounds must be asked for in order."""
        if self._plan.draw is Draw.TOP_K:
            return logits
        if round_ not in self._made:
            # Several rounds are made at once, or a small super-batch's noise would cost as much as a large one's.
            rounds = max(1, NOISE_AHEAD // max(1, len(self._candidates)))
            self._made = range(round_, min(round_ + rounds, max(round_ + 1, len(self._plan.sizes))))
            self._noise = _gumbel(self._plan.seed, self._made, self._candidates)
        return logits + self._noise[round_ - self._made.start]

    def uniform(self, logits: Tensor) -> Tensor:
        """The keys of the uniform picks that come before the first round, whatever the draw."""
        return logits + gumbel(self._plan.seed, EXPLORE_STREAM, self._candidates)


def open_logits(score: Tensor, taken: Tensor, plan: Plan) -> Tensor:
    """gain * score, float64 [n], kept finite whatever the two are, so that only the candidates that are `taken`
    already or closed, bool [n], are at -inf."""
    return (score * plan.gain).clamp(min=torch.finfo(score.dtype).min).masked_fill(taken, -torch.inf)


def best(ranking: Tensor, size: int) -> Tensor:
    """Indices int64 [size] of the highest keys, best first; ties go to the lower index.

    Gumbel top-k: adding Gumbel noise to log-weights and taking the top has the law of drawing one after the other
    with p proportional to exp(logit) among those left (Kool et al., 2019), and never exponentiates a score.
    """
    top = torch.topk(ranking, min(size + 1, len(ranking)))
    if bool((top.values[1:] == top.values[:-1]).any()):  # topk breaks ties as it likes
        return torch.sort(ranking, descending=True, stable=True).indices[:size]
    return top.indices[:size]


def check_open(open_: Tensor | None, plan: Plan) -> None:
    """Raises ValueError if fewer candidates are open, bool [B], than the plan takes of them, or of a rank's share."""
    if open_ is None:
        return
    least, quota = int(open_.view(plan.ranks, -1).sum(dim=1).min()), plan.picks // plan.ranks
    if least < quota:
        whose = "" if plan.ranks == 1 else " of a rank"
        raise ValueError(f"{least} candidates{whose} are open; the plan takes {quota} of them")


def draw_chunk(ranking: Tensor, size: int, plan: Plan) -> Tensor:
    """Indices int64 [size] of one chunk without replacement, given the candidates' keys; -inf marks what must not be
    drawn. With several ranks, the same number comes from each, rank 0's first.
    """
    if plan.ranks == 1:
        return best(ranking, size)
    share = len(ranking) // plan.ranks
    parts = [best(part, size // plan.ranks) + rank * share for rank, part in enumerate(torch.split(ranking, share))]
    return torch.cat(parts)


def _gumbel(seed: int, streams: range, candidates: Tensor) -> Tensor:
    """The noise of several rounds, float64 [streams, n]."""
    mixed = [_signed(_mix_int(_mix_int(seed & _MASK64) + (stream + 1) * _GOLDEN)) for stream in streams]
    keys = torch.tensor(mixed, device=candidates.device).unsqueeze(1)
    bits = _mix(candidates * _signed(_GOLDEN) + keys)
    # The 53 bits lie in the middle of their cells and are never 0 or 1, so that both logarithms are finite.
    uniform = (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def _signed(value: int) -> int:
    """The signed 64-bit number with the same bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift(bits: Tensor, places: int) -> Tensor:
    """Shifts int64 right and fills up with zeros."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's output function of each element, int64."""
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


def _mix_int(value: int) -> int:
    """The same function of one number."""
    value &= _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
