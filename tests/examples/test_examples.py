"""The examples, each run as its table says: bundles, a real sidecar, a real Redis-protocol server, the program."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from support.processes import spawn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 60
PROGRAMS = {
    "plain_torch.py": "two-tower",
    "flexi.py": "two-tower-low",
    "numpy_jax.py": "linear",
    "open_clip_training.py": "open-clip",
    "huggingface_trainer.py": "huggingface",
    "lightning_training.py": "two-tower",
}


def run(program, *arguments, folder) -> str:
    """What a program of the examples printed; it must end well."""
    log = folder / f"{Path(program).stem}.log"
    with log.open("w") as output:
        process = spawn(*_started(program), *arguments, stdout=output, stderr=output)
        try:
            status = process.wait(timeout=110)
        finally:
            process.kill()
    assert status == 0, log.read_text()
    return log.read_text()


def _started(program) -> list[str]:
    """Lightning and transformers import torchvision, which need not fit the torch that the tests run with."""
    if not program.startswith(("lightning", "huggingface")):
        return [str(EXAMPLES / program)]
    importable = "from selector_tools.export.torchvision import make_importable; make_importable()"
    there = f"import runpy, sys; sys.path.insert(0, {str(EXAMPLES)!r}); sys.argv[0] = {program!r}"
    return ["-c", f"{importable}; {there}; runpy.run_path({str(EXAMPLES / program)!r}, run_name='__main__')"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Flags of the sidecar for one model of make_bundles.py, made once."""
    folders = {}

    def make(model) -> dict[str, str]:
        if model not in folders:
            folders[model] = folder = tmp_path_factory.mktemp(model)
            run("make_bundles.py", model, "--out", folder, folder=folder)
        return {role: str(folders[model] / role) for role in ("learner", "reference")}

    return make


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_trains_on_what_the_sidecar_picks(program, made, sidecar, redis_url, run_name, tmp_path):
    if program.startswith("lightning") and not importlib.util.find_spec("lightning"):
        assert "lightning is not installed" in run(program, folder=tmp_path)
        pytest.skip("LIGHTNING IS NOT INSTALLED: the example said so and trained nothing")
    running = sidecar(made(PROGRAMS[program]) | {"redis": redis_url, "run": run_name, "threads": 1})
    flags = ("--sidecar", running.address, "--redis", redis_url, "--run", run_name, "--steps", STEPS)
    said = run(program, *flags, folder=tmp_path)
    assert f"steps: {STEPS}, fallbacks: 0," in said, said
    published, scored = map(int, re.search(r"weights: (\d+) versions published, (\d+) scored with", said).groups())
    assert published >= 2
    assert scored >= 2, "the sidecar never scored with weights of this training"
    if "mislabelled" in said:
        assert int(re.search(r"mislabelled: (\d+)% of the picks", said)[1]) < 35
    if program == "flexi.py":
        assert re.search(r"FLOPs: .* of training without selection", said)
    if program == "numpy_jax.py":
        assert "torch was never imported" in said
    if program == "huggingface_trainer.py" and "accelerate is not installed" in said:
        pytest.skip("ACCELERATE IS NOT INSTALLED: ran a plain loop with the callback, not transformers' Trainer")


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
    assert {file.name for file in EXAMPLES.glob("*.py")} - helpers == PROGRAMS.keys()
    for program, model in PROGRAMS.items():
        assert re.search(rf"\[{re.escape(program)}\]\({re.escape(program)}\) \| `{model}`", table), program
