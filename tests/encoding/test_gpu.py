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
