"""What joint selection is compared with: the paper's pseudo-code for it, which is slow, large and obviously right, and
the brute-force Gibbs sampling that drawing in chunks approximates. Both hold the whole B x B matrix of scores."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from selector_server.sampling import Embedded, PairScores, Plan
from selector_server.sampling.noise import gumbel

# Sweeps of Gibbs sampling end when one gains less than this share of what all of them gained.
FLAT = 1e-3
MAX_SWEEPS = 40


def pair_losses(model: Embedded) -> Tensor:
    """Returns the sigmoid loss of every pair, float [B, B]: softplus(-logit_ii) on the diagonal, softplus(logit_ij)
    elsewhere, for image i and text j."""
    logits = (model.image * model.scale) @ model.text.T + model.bias
    logits.diagonal().neg_()
    return softplus(logits)


def pseudo_code(learner: Embedded, reference: Embedded, plan: Plan) -> Tensor:
    """Returns picks as Algorithm 1 of JEST draws them (Evans et al. 2024): indices int64 [b], in draw order.

    In every round the masked rows and columns of the matrix are summed anew. Only the draw is ours: the noise is the
    sampler's, so that the picks can be compared, and what is taken already counts as -inf.
    """
    scores = pair_losses(learner) - pair_losses(reference)
    candidates = torch.arange(len(scores), device=scores.device)
    mask = torch.zeros_like(scores[0])
    chunks: list[Tensor] = []
    for round_, size in enumerate(plan.sizes):
        logits = scores.diagonal()
        if round_ > 0:
            logits = logits + (scores * mask[:, None]).sum(dim=0) + (scores * mask[None, :]).sum(dim=1)
        keys = (plan.gain * logits).masked_fill(mask.bool(), -torch.inf) + gumbel(plan.seed, round_, candidates)
        chunk = keys.topk(size).indices
        mask[chunk] = 1.0
        chunks.append(chunk)
    return torch.cat(chunks)


def matrix(scores: PairScores) -> Tensor:
    """Returns the scores of all pairs, S_ij, float32 [B, B]."""
    total = torch.zeros((scores.size, scores.size))
    for weight, model in scores.models:
        total += weight * pair_losses(model)
    return total


def gibbs(pairs: Tensor, start: Tensor, gain: float, seed: int) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yields a sub-batch, int64 [b], and its score: first those of `start`, then those after each sweep, until sweeps
    hardly gain any more. `pairs` is what `matrix` returns (JEST, section 3.2).

    A sweep draws every member anew once, in random order: the member leaves, and a candidate that is not a member
    joins with p proportional to exp(gain * what the score grows by), which is the exact conditional.
    """
    rng = np.random.default_rng(seed)
    own = pairs.diagonal().double().numpy()
    both = (pairs + pairs.T).fill_diagonal_(0.0).numpy()
    members = start.numpy().copy()
    growth = own + both[members].sum(axis=0, dtype=np.float64)  # what the score grows by if the candidate joins
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
