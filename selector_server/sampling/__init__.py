"""Pure functions of tensors and a seed: losses, criteria, draws, policies. Imports only torch and the stdlib."""

from selector_server.sampling.embeddings import MAX_LOGIT, Embedded
from selector_server.sampling.plan import Draw, Plan, chunk_sizes
from selector_server.sampling.policies import Needs, Picks, Policy
from selector_server.sampling.registry import load_policies
from selector_server.sampling.scores import Criterion, Loss, PairScores, ScalarScores, Scores

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
