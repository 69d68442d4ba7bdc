"""The sampler: pure functions of tensors and a seed. Losses and criteria make scores, and policies draw from them.

It imports only torch, numpy and the standard library. These names are what policies of other packages may rely on.
"""

from selector_server.sampling.embeddings import MAX_LOGIT, Embedded
from selector_server.sampling.losses import Loss
from selector_server.sampling.plan import Draw, Picks, Plan, chunk_sizes
from selector_server.sampling.policies import Needs, Policy, load_policies
from selector_server.sampling.scores import Criterion, PairScores, ScalarScores, Scores

__all__ = [
    "MAX_LOGIT",
    "Criterion",
    "Draw",
    "Embedded",
    "Loss",
    "Needs",
    "PairScores",
    "Picks",
    "Plan",
    "Policy",
    "ScalarScores",
    "Scores",
    "chunk_sizes",
    "load_policies",
]
