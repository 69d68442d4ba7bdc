"""The fused kernel against float64: in Triton's interpreter, and compiled on a CUDA device where there is one."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from selector_server.sampling.losses import kernel
from selector_server.sampling.losses.kernel import StripModel, strips

BF16, FP16, FP32 = "bfloat16", "float16", "float32"
# B, c, D, then (scale, bias, weight) of each model.
LEARNER, REFERENCE = (10.0, -10.0, 1.0), (25.0, -7.5, -1.0)
CASES = [
    (6, 131, 100, [LEARNER, REFERENCE]),
    (5, 256, 64, [LEARNER]),
    (5, 7, 129, [REFERENCE]),
    (1, 1, 1, [LEARNER, REFERENCE]),
    (4, 3, 768, [(100.0, -10.0, 1.0)]),
    (4, 130, 16, [(100.0, 10.0, 1.0), (-100.0, 10.0, -1.0)]),
    (4, 128, 24, [(0.0, 0.0, 1.0)]),  # every term of the product is 2
    (4, 128, 24, [(1e5, 1e4, 1.0)]),
    (4, 128, 24, [(1.0, -60.0, 1.0)]),
]
GPU_CASES = [*CASES, (1000, 2048, 768, [LEARNER, REFERENCE]), (4097, 1000, 514, [LEARNER, REFERENCE])]


def build(count, picks, width, laws, dtype, device="cpu"):
    """Rows of length one, in `dtype`; picks are not candidates, which makes no difference to the kernel."""
    generator = torch.Generator().manual_seed(count + picks + width)

    def rows(number):
        z = torch.randn(number, width, generator=generator, dtype=torch.float64)
        return (z / z.norm(dim=1, keepdim=True)).to(getattr(torch, dtype)).to(device)

    return [StripModel(rows(count), rows(count), rows(picks), rows(picks), *law) for law in laws]


def oracle(models, error):
    """(strips, bound on their error), float64 [B] each; `error` bounds what a product of two rows of length one loses.

    d softplus(x) / dx <= min(1, softplus(x)); float32 rounds the bias, and adds 2e-6 of every loss.
    """
    zero = torch.zeros((), dtype=torch.float64)
    signed, bound = 0.0, 1e-30
    for m in models:
        for candidates, picks in ((m.text, m.picked_image), (m.image, m.picked_text)):
            logits = m.scale * (candidates.cpu().double() @ picks.cpu().double().T) + m.bias
            losses = torch.logaddexp(logits, zero)
            off = abs(m.scale) * error + abs(m.bias) * 2.0**-23
            signed = signed + m.weight * losses.sum(dim=1)
            bound = bound + (2e-6 * losses + off * losses.clamp(max=1)).sum(dim=1)
    return signed, bound


def run(case, dtype, device):
    """The strips, and a second run of them into an accumulator that holds 1000s."""
    models = build(*case, dtype, device)
    out = torch.full((case[0],), 1000.0, dtype=torch.float64, device=device)
    first = strips(models)
    assert strips(models, out) is out
    return first.tolist(), out.tolist()


def check(case, dtype, results, error):
    want, bound = oracle(build(*case, dtype), error)
    first, added = (torch.tensor(values, dtype=torch.float64) for values in results)
    assert bool(((first - want).abs() <= bound).all()), ((first - want).abs() / bound).max()
    torch.testing.assert_close(added, 1000.0 + first, rtol=1e-13, atol=0.0)


def twice(case, device):
    models = build(*case, BF16, device)
    return strips(models).tolist(), strips(models).tolist()


@pytest.fixture(scope="module")
def interpreter():
    """A process whose Triton was imported with TRITON_INTERPRET=1, which this process's may not have been."""
    if sys.platform != "linux":
        pytest.skip("NOT RUN: Triton is for Linux only, so the kernel is untested")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        try:
            pool.submit(run, CASES[3], FP32, "cpu").result()
        except Exception as error:
            if "0-dimensional" not in str(error):
                raise
            pytest.skip(
                "NOT RUN: the interpreter of this Triton fails with this NumPy; NumPy < 2.4 or Triton 3.9 works"
            )
        yield lambda *arguments: pool.submit(*arguments).result()


@pytest.fixture
def cuda():
    if not (torch.cuda.is_available() and kernel.available(torch.device("cuda"))):
        pytest.skip("NOT RUN: no CUDA device of capability 9.0 with Triton, so the compiled kernel is untested here")
    return "cuda"


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_strips_equal_float64_in_the_interpreter(interpreter, case, dtype):
    check(case, dtype, interpreter(run, case, dtype, "cpu"), 2e-7)


def test_float16_in_the_interpreter(interpreter):
    check(CASES[2], FP16, interpreter(run, CASES[2], FP16, "cpu"), 2e-7)


def test_same_tensors_same_bits_in_the_interpreter(interpreter):
    first, again = interpreter(twice, CASES[2], "cpu")
    assert first == again


@pytest.mark.gpu
@pytest.mark.parametrize("tile", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_strips_equal_float64_on_cuda(cuda, monkeypatch, case, dtype, tile):
    """With the tile that tuning chooses, and with each. TF32 keeps 10 bits of either factor of a product."""
    from selector_server.sampling.losses import kernel_triton

    if tile is not None:
        monkeypatch.setattr(kernel_triton.side, "configs", [kernel_triton.TILES[tile]])
    check(case, dtype, run(case, dtype, cuda), 2.0**-9 if dtype == FP32 else 1e-5)


@pytest.mark.gpu
def test_same_tensors_same_bits_on_cuda(cuda):
    first, again = twice(GPU_CASES[-1], cuda)
    assert first == again


@pytest.mark.gpu
def test_the_tile_changes_nothing_on_cuda(cuda, monkeypatch):
    """So two processes that tuned differently still draw the same picks."""
    from selector_server.sampling.losses import kernel_triton

    models = build(1000, 2048, 768, [LEARNER, REFERENCE], BF16, cuda)
    results = []
    for tile in kernel_triton.TILES:
        monkeypatch.setattr(kernel_triton.side, "configs", [tile])
        results.append(strips(models))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-13, atol=1e-12)


def test_rejects_what_it_cannot_compute():
    (model,) = build(3, 2, 4, [LEARNER], FP32)
    (other,) = build(4, 2, 4, [LEARNER], FP32)
    with pytest.raises(ValueError, match="empty"):
        strips([])
    with pytest.raises(ValueError, match="differ in B"):
        strips([model, other])
    with pytest.raises(ValueError, match="out is"):
        strips([model], torch.zeros(3))
    with pytest.raises(ValueError, match="shapes"):
        StripModel(model.image, other.text, model.picked_image, model.picked_text, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="shapes"):
        StripModel(model.image, model.text, model.picked_image[:0], model.picked_text[:0], 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="must agree"):
        StripModel(model.image.double(), model.text, model.picked_image, model.picked_text, 1.0, 0.0, 1.0)


def test_imports_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from selector_server.sampling.losses import kernel
assert not kernel.available(torch.device("cpu"))
import os
os.environ["TRITON_INTERPRET"] = "1"
assert not kernel.available(torch.device("cpu"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "0"}, timeout=100)


def test_copies_only_what_it_must():
    z = torch.zeros(3, 64)
    assert kernel._aligned(z).data_ptr() == z.data_ptr()
    assert kernel._aligned(z[:, :63]).shape == (3, 64)
    shifted = kernel._aligned(torch.zeros(3 * 64 + 1)[1:].view(3, 64))
    assert shifted.data_ptr() % 16 == 0
