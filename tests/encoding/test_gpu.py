"""Encoding on a CUDA device; skipped, out loud, where there is none."""

import numpy as np
import pytest
import torch
from selector_tools.export.bundle_writer import export_learner, export_reference
from support.model import TwoTower, samples, source

from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and onnxruntime-gpu"),
]
PIXELS, IDS = samples(300)
IDS = IDS.astype(np.int64)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_a_gpu_encodes_as_a_cpu_does(tmp_path, precision, tolerance):
    model = TwoTower(3).eval()
    export_learner(source("gpu", model), tmp_path / "gpu", precision=precision)
    export_reference(source("cpu", model), tmp_path / "cpu")
    on_gpu = Model(load(tmp_path / "gpu", "learner"), Device("cuda"), 64)
    on_cpu = Model(load(tmp_path / "cpu", "reference"), Device("cpu"), 64)
    ours = on_gpu.encode(PIXELS, IDS, on_gpu.bundled_weights())
    theirs = on_cpu.encode(PIXELS, IDS, on_cpu.constant_weights())
    assert ours.image.is_cuda
    assert on_gpu.providers[0] == "CUDAExecutionProvider"
    np.testing.assert_allclose(ours.image.cpu(), theirs.image, atol=tolerance)
    np.testing.assert_allclose(ours.text.cpu(), theirs.text, atol=tolerance)


def test_work_that_torch_has_yet_to_do_never_meets_that_of_onnx_runtime(tmp_path):
    """Freed memory is handed out again while work on it is still queued, which is safe for torch's own work alone."""
    export_learner(source("gpu", TwoTower(3).eval()), tmp_path / "gpu")
    model = Model(load(tmp_path / "gpu", "learner"), Device("cuda"), 1024)
    weights = model.bundled_weights()
    want, _ = model.raw(PIXELS, IDS, weights)
    want = want.clone()
    for _ in range(3):
        torch.cuda.empty_cache()
        freed = [torch.empty_like(want) for _ in range(4)]
        torch.cuda._sleep(1_000_000_000)  # half a second
        for one in freed:
            one.fill_(float("nan"))
        del one, freed
        got, _ = model.raw(PIXELS, IDS, weights)
        torch.testing.assert_close(got, want)
