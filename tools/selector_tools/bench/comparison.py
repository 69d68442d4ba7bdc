"""Compares two ways to score the same candidates: how alike are the orders and the picks that they lead to?"""

import numpy as np
import torch
from numpy.typing import NDArray

from selector_server.sampling import PairScores, Plan
from selector_server.sampling.policies import Joint
from selector_tools.reference.rank_statistics import rank_correlation


def compare(true: PairScores, other: PairScores, plan: Plan) -> dict[str, float]:
    """Returns these figures of one super-batch that is scored in two ways:

    - loss: the rank correlation of candidates' own losses under the learner alone, where both ways have a learner
    - own: the rank correlation of candidates' own scores
    - joint: the rank correlation of scores given the first half of `true`'s picks, over the candidates that are left
    - overlap: the share of `true`'s picks that `other` makes too, with the same noise
    - kept: how `true` scores `other`'s picks: 0 if like uniform picks, 1 if like its own
    """
    picks, others = Joint().pick(true, plan).indices, Joint().pick(other, plan).indices
    half = picks[: plan.picks // 2]
    uniform = true.uniform_total(plan.picks)
    loss = {}
    if true.learner is not None and other.learner is not None:  # a loss falls with its logit
        loss["loss"] = rank_correlation(true.learner.own_logits.numpy(), other.learner.own_logits.numpy())
    return {
        **loss,
        "own": rank_correlation(true.own().numpy(), other.own().numpy()),
        "joint": rank_correlation(_given(true, half), _given(other, half)),
        "overlap": overlap(picks, others),
        "kept": (true.total(others) - uniform) / (true.total(picks) - uniform),
    }


def overlap(picks: torch.Tensor, others: torch.Tensor) -> float:
    """Returns the share of picks, int64 [b], that are among the others."""
    return float(torch.isin(picks, others).double().mean())


def _given(scores: PairScores, picked: torch.Tensor) -> NDArray[np.float64]:
    """Returns the scores of the candidates that are left once these are picked, float64 [B - b]."""
    running = scores.running()
    running.add(scores.chunk(picked))
    left = torch.ones(scores.size, dtype=torch.bool)
    left[picked] = False
    return np.asarray(running.scores()[left].numpy(), np.float64)
