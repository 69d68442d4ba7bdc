"""How much pairs weigh, against loops over all pairs in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from selector_tools.datasets.pairs import Pairs
from selector_tools.study.feeds import Source
from selector_tools.study.model import SmallSigLip
from selector_tools.study.rules import rule
from selector_tools.study.streams import Stream
from selector_tools.study.variance import PairVariance

COUNT, PICKS = 12, [3, 7, 0, 11]


def models() -> tuple[SmallSigLip, SmallSigLip]:
    torch.manual_seed(1)
    return SmallSigLip(30), SmallSigLip(30)


def source() -> Source:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 255, (COUNT, 32, 32, 1), dtype=np.uint8)
    rows = np.arange(COUNT)
    return Source(Pairs(pixels, rng.integers(1, 30, (COUNT, 8))), Stream(rows, rows), 4, 12, 0)


def literal(learner: SmallSigLip, reference: SmallSigLip, name: str) -> float:
    """Returns the share, by the loss of each pair of a picture and a caption in turn."""
    pairs = source().pairs
    losses = {}
    for who, model in (("learner", learner), ("reference", reference)):
        image, text = model(torch.from_numpy(pairs.pixels), torch.from_numpy(pairs.tokens))
        cosines = (image @ text.T).double().detach().numpy()
        logits = math.exp(model.log_scale.item()) * cosines + model.bias.item()
        losses[who] = [
            [math.log1p(math.exp(-z if i == j else z)) for j, z in enumerate(r)] for i, r in enumerate(logits)
        ]

    def score(i: int, j: int, only_reference: bool) -> float:
        return (0 if only_reference else losses["learner"][i][j]) - losses["reference"][i][j]

    easy_own, easy_pairs = name == "joint_easy_reference", name in ("joint_easy_reference", "mixed")
    own = [score(i, i, easy_own) for i in range(COUNT)]
    added = [sum(score(i, j, easy_pairs) + score(j, i, easy_pairs) for j in PICKS if j != i) for i in range(COUNT)]
    return float(np.var(added) / (np.var(added) + np.var(own)))


@pytest.mark.parametrize("name", ["jest", "mixed", "joint_easy_reference"])
def test_the_share_is_that_of_the_definition(name: str) -> None:
    learner, reference = models()
    found = PairVariance(learner, reference, source(), rule(name).settings, steps=8)
    for step in range(8):
        found(step, np.arange(COUNT), SimpleNamespace(indices=PICKS))
    assert [step for step, _ in found.shares] == [2, 4, 6, 8]
    assert found.shares[0][1] == pytest.approx(literal(learner, reference, name), rel=1e-4)
