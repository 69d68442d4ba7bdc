"""Brute-force Gibbs sampling of sub-batches, which drawing in chunks approximates (JEST section 3.2)."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from selector_server.sampling import PairScores

# Flat: a sweep gains less than this share of what all sweeps gained.
FLAT = 1e-3
MAX_SWEEPS = 40


def matrix(scores: PairScores) -> Tensor:
    """S_ij, float32 [B, B]."""
    total = torch.zeros((scores.size, scores.size))
    for weight, model in scores.models:
        logits = (model.image * model.scale) @ model.text.T + model.bias
        logits.diagonal().neg_()
        total += weight * softplus(logits)
    return total


def gibbs(pairs: Tensor, start: Tensor, gain: float, seed: int) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yields the sub-batch and its score, first those of `start`, then after each sweep, until they are flat.

    A sweep re-draws every member once, in random order: it leaves, and a candidate that is not a member joins with
    p proportional to exp(gain * what the score grows by), the exact conditional.
    """
    rng = np.random.default_rng(seed)
    own = pairs.diagonal().double().numpy()
    both = (pairs + pairs.T).fill_diagonal_(0.0).numpy()
    members = start.numpy().copy()
    growth = own + both[members].sum(axis=0, dtype=np.float64)  # of the score, if the candidate joined
    taken = np.zeros(len(own))
    taken[members] = -np.inf

    def total() -> float:
        return float((own[members] + growth[members]).sum() / 2)

    first = before = total()
    yield members.copy(), before
    for _ in range(MAX_SWEEPS):
        for slot in rng.permutation(len(members)):
            growth -= both[members[slot]]
            taken[members[slot]] = 0.0
            joins = int(np.argmax(gain * growth + taken + rng.gumbel(size=len(own))))
            growth += both[joins]
            taken[joins] = -np.inf
            members[slot] = joins
        now = total()
        yield members.copy(), now
        if now - before <= FLAT * (now - first):
            return
        before = now
