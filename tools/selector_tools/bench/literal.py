"""JEST as the paper's pseudo-code has it (Evans et al. 2024, Algorithm 1): slow, large and obviously right.

It holds the whole B x B matrix of scores, and sums its masked rows and columns anew in every round. Only the draw is
ours: it takes the same Gumbel noise, so that the picks can be compared, and -inf for what is taken.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from selector_server.sampling import Embedded, Plan
from selector_server.sampling.noise import gumbel


def pick(learner: Embedded, reference: Embedded, plan: Plan) -> Tensor:
    """The picks' indices, int64 [b], in draw order. The criterion is learnability, and the loss is sigmoid."""
    scores = _nll(learner) - _nll(reference)
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


def _nll(model: Embedded) -> Tensor:
    """The loss of every pair, float [B, B]: softplus(-logit_ii), and softplus(logit_ij) for i != j."""
    logits = (model.image * model.scale) @ model.text.T + model.bias
    logits.diagonal().neg_()
    return softplus(logits)
