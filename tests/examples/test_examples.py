"""The examples that need nothing but what is installed anyway; tests/integration runs the others."""

import re

import numpy as np
import pytest
from support.examples import EXAMPLES, LIBRARIES, PROGRAMS, trained


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_trains_on_what_the_sidecar_picks(program, shared_folder, sidecar, redis_url, run_name, tmp_path):
    said = trained(program, shared_folder, sidecar, redis_url, run_name, tmp_path)
    if program == "flexi.py":
        assert re.search(r"FLOPs: .* of training without selection", said)
    if program == "weighted.py":
        assert float(re.search(r"weight: ([\d.]+) of a mislabelled pick", said)[1]) < 0.9
    if program == "numpy_jax.py":
        assert "torch was never imported" in said


def test_the_gradients_by_hand_are_torchs_own(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import numpy_jax
    import torch
    from towers import sigmoid_loss

    rng = np.random.default_rng(3)
    parameters = {name: value.astype(np.float64) for name, value in numpy_jax.start().items()}
    images, texts = rng.standard_normal((7, len(parameters["image"]))), rng.integers(0, numpy_jax.VOCABULARY, (7, 4))
    found = numpy_jax.gradients_by_hand(parameters, images, texts)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
    model = type("Model", (), {name: tensors[name] for name in ("logit_scale", "logit_bias")})
    sigmoid_loss(torch.tensor(images) @ tensors["image"], tensors["words"][texts].mean(dim=1), model).backward()
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_allclose(found[name], value.grad.numpy(), rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text()
    helpers = {"pairs.py", "shared.py", "towers.py", "make_bundles.py"}
    assert {file.name for file in EXAMPLES.glob("*.py")} - helpers == PROGRAMS.keys() | LIBRARIES.keys()
    for program, model in (PROGRAMS | LIBRARIES).items():
        assert re.search(rf"\[{re.escape(program)}\]\({re.escape(program)}\) \| `{model}`", table), program
