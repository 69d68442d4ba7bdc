"""Pure functions of tensors and a seed: losses, criteria, draws, policies. Imports only torch and the stdlib."""

from selector_server.sampling.plan import Draw, Plan, chunk_sizes
from selector_server.sampling.policies import POLICIES, Needs, Picks, Policy
from selector_server.sampling.scores import MAX_LOGIT, Criterion, Embedded, PairScores, ScalarScores, Scores

__all__ = [
    "MAX_LOGIT",
    "POLICIES",
    "Criterion",
    "Draw",
    "Embedded",
    "Needs",
    "PairScores",
    "Picks",
    "Plan",
    "Policy",
    "ScalarScores",
    "Scores",
    "chunk_sizes",
]
