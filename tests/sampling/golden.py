"""What the sampler picked when every candidate could be picked: `golden.json`, for a grid of settings.

`python tests/sampling/golden.py > tests/sampling/golden.json` wrote it, with the code of commit 7df491f.
"""

import itertools
import json
import sys
from collections.abc import Iterator

import numpy as np
import torch

from selector_server.sampling import (
    Criterion,
    Draw,
    Embedded,
    Loss,
    PairScores,
    Plan,
    ScalarScores,
    chunk_sizes,
    load_policies,
)
from selector_server.sampling.quality import assess

OWN = [criterion for criterion in Criterion if criterion is not Criterion.NONE]
BOUNDS = (-1.0, 0.0, 1.0)


def model(seed: int, scale: float, bias: float, count: int = 96) -> Embedded:
    image, text = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, count, 16)))
    text = text + image
    return Embedded(*(z / z.norm(dim=1, keepdim=True) for z in (image, text)), scale, bias)


def grid() -> Iterator[tuple[str, object, Plan, str]]:
    """Names, scores, plans and policies."""
    learner, reference = model(1, 10.0, -10.0), model(2, 25.0, -7.5)
    for criterion, loss, draw, bound in itertools.product(OWN, Loss, Draw, (None, 1000)):
        scores = PairScores(criterion, learner, reference, loss, bound)
        plan = Plan(chunk_sizes(21, 5), 5.0, draw, seed=2**64 - 3)
        yield f"joint {criterion.name} {loss.name} {draw.name} {bound}", scores, plan, "joint"
    scores, scalars = PairScores(Criterion.LEARNABILITY, learner, reference), ScalarScores(learner.image[:, 0] * 3)
    for name, policy, draw in itertools.product(("pairs", "scalars"), ("independent", "uniform"), Draw):
        plan = Plan((15,), 3.0, draw, seed=7)
        yield f"{policy} {name} {draw.name}", scores if name == "pairs" else scalars, plan, policy
    for policy, sizes in (("joint", (8, 8, 4)), ("independent", (20,)), ("uniform", (20,))):
        yield f"{policy} of 4 ranks", scores, Plan(sizes, 100.0, Draw.SAMPLE, seed=3, ranks=4), policy
    many = model(3, 10.0, -10.0, 600), model(4, 25.0, -7.5, 600)
    for loss in Loss:  # more than a uniform sub-batch is estimated from
        scores = PairScores(Criterion.LEARNABILITY, *many, loss, 10_000)
        yield f"joint {loss.name} of 600", scores, Plan(chunk_sizes(30, 4), 100.0, Draw.SAMPLE, seed=11), "joint"


def found() -> dict[str, dict[str, object]]:
    policies, results = load_policies(), {}
    for name, scores, plan, policy in grid():
        picks = policies[policy].pick(scores, plan)
        quality = assess(scores.own(), picks.indices, plan, BOUNDS)
        results[name] = {
            "indices": picks.indices.tolist(),
            "scores": [round(score, 9) for score in picks.scores.tolist()],
            "total": round(picks.total, 9),
            "uniform": round(scores.uniform_total(plan.picks), 9),
            "left": [*quality.left.counts, round(quality.left.total, 9)],
            "shares": [quality.top_share and round(quality.top_share, 9), quality.uniform_overlap],
        }
    return results


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in found().items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
