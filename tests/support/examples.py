"""The programs of examples/, each run as its table says: bundles, a real sidecar, real Redis, the program."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from support.processes import spawn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 60
# The model of make_bundles.py that a program's sidecar serves. Those of heavy libraries are for tests/integration.
PROGRAMS = {
    "plain_torch.py": "two-tower",
    "weighted.py": "two-tower",
    "flexi.py": "two-tower-low",
    "numpy_jax.py": "linear",
    "open_clip_training.py": "open-clip",
}
LIBRARIES = {
    "huggingface_trainer.py": "huggingface",
    "lightning_training.py": "two-tower",
}


def trained(program: str, shared_folder, sidecar, redis_url: str, run_name: str, folder: Path) -> str:
    """What a program printed that trained on what a sidecar picked, with weights that it published."""
    model = (PROGRAMS | LIBRARIES)[program]
    bundles = shared_folder(f"example-{model}", lambda out: _make_bundles(model, out))
    flags = {"learner": bundles / "learner", "reference": bundles / "reference", "threads": 1}
    running = sidecar(flags | {"redis": redis_url, "run": run_name})
    arguments = ("--sidecar", running.address, "--redis", redis_url, "--run", run_name, "--steps", STEPS)
    said = _run(program, *arguments, folder=folder)
    assert f"steps: {STEPS}, fallbacks: 0," in said, said
    published, scored = map(int, re.search(r"weights: (\d+) versions published, (\d+) scored with", said).groups())
    assert published >= 2
    assert scored >= 2, "the sidecar never scored with weights of this training"
    if "mislabelled" in said:
        assert int(re.search(r"mislabelled: (\d+)% of the picks", said)[1]) < 35
    return said


def _make_bundles(model: str, out: Path) -> None:
    """As `python examples/make_bundles.py` does it, but in this process: a new one computes for ten seconds to import
    torch's exporter, and all the examples need it."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), pytest.raises(SystemExit) as ended:
        torch.manual_seed(0)
        patch.syspath_prepend(EXAMPLES)
        patch.setattr(sys, "argv", ["make_bundles.py", model, "--out", str(out)])
        runpy.run_path(str(EXAMPLES / "make_bundles.py"), run_name="__main__")
    assert ended.value.code == 0


def _run(program: str, *arguments, folder: Path) -> str:
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


def _started(program: str) -> list[str]:
    """Lightning and transformers import torchvision, which need not fit the torch that the tests run with."""
    if program not in LIBRARIES:
        return [str(EXAMPLES / program)]
    importable = "from selector_tools.export.torchvision import make_importable; make_importable()"
    there = f"import runpy, sys; sys.path.insert(0, {str(EXAMPLES)!r}); sys.argv[0] = {program!r}"
    return ["-c", f"{importable}; {there}; runpy.run_path({str(EXAMPLES / program)!r}, run_name='__main__')"]
