"""The joint draw on the fused kernel, in Triton's interpreter: its objective is that of the plain path."""

import os
import subprocess
import sys

import pytest

CODE = """
import torch
from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes
from selector_server.sampling.losses.kernel import available
from selector_server.sampling.policies import Joint
assert available(torch.device("cpu"))

def model(seed):
    image, text = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(seed))
    return Embedded.normalise(image, text + image, 10.0 + 5 * seed, -10.0)

plan = Plan(chunk_sizes(10, 2), 100.0, Draw.SAMPLE, 1)
for criterion in (Criterion.LEARNABILITY,):
    plain, fused = (PairScores(criterion, model(1), model(2), fused=f) for f in (False, True))
    picks, twins = Joint().pick(plain, plan), Joint().pick(fused, plan)
    uniform = plain.total(torch.arange(10))
    won, exact = picks.total - uniform, plain.total(twins.indices)
    assert abs(picks.total - exact) < 0.01 * won, criterion
    assert abs(twins.total - exact) < 0.01 * won, criterion
open_ = torch.arange(40) % 4 != 1
plain, fused = (PairScores(Criterion.LEARNABILITY, model(1), model(2), fused=f, open=open_) for f in (False, True))
picks, twins = Joint().pick(plain, plan), Joint().pick(fused, plan)
assert bool(open_[twins.indices].all())
assert abs(twins.total - plain.total(twins.indices)) < 0.01 * abs(picks.total - plain.total(torch.arange(10)))
print("same")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and with it its interpreter, is for Linux only")
def test_the_fused_draw_loses_nothing():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "same\n", done.stderr
