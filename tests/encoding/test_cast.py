"""Weights are cast in pieces by several threads: every value arrives, and one that is not finite is found anywhere."""

import numpy as np
import pytest
import torch
from selector_proto.safetensors import TensorView

from selector_server.encoding import model as module
from selector_server.errors import NotPossible
from selector_server.sampling import threads
from selector_server.sampling.threads import Threads

COUNTS = {"one": 1, "ends with a piece": 21, "begins another": 22, "none": 0}


@pytest.fixture(autouse=True)
def _small_pieces_and_threads(monkeypatch):
    monkeypatch.setattr(module, "CAST_VALUES", 7)
    monkeypatch.setattr(threads, "_threads", Threads(3))


def views(dtype, **changed):
    made = {name: torch.randn(count, generator=torch.Generator().manual_seed(count)) for name, count in COUNTS.items()}
    for name, (place, value) in changed.items():
        made[name][place] = value
    code = {torch.bfloat16: "BF16", torch.float64: "F64"}[dtype]
    cast = {name: values.to(dtype) for name, values in made.items()}
    return cast, {
        name: TensorView(code, (len(values),), memoryview(values.view(torch.uint8).numpy()))
        for name, values in cast.items()
    }


def room():
    return {name: np.full(count, np.nan, np.float32) for name, count in COUNTS.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "f64"])
def test_every_value_arrives(dtype):
    values, given = views(dtype)
    parts = room()
    module._cast(given, parts)
    for name, part in parts.items():
        np.testing.assert_array_equal(part, values[name].float().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["NaN", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 6, 7, 20, 21])
def test_a_value_that_is_not_finite_is_found_anywhere(place, value):
    _, given = views(torch.bfloat16, **{"begins another": (place, value)})
    with pytest.raises(NotPossible, match="parameter begins another is NaN or infinite"):
        module._cast(given, room())
