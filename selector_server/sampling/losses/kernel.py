"""The sigmoid loss's strips as one fused GPU kernel: products, softplus and sum, with no tile written to memory.

Its floor at B = 163,840, c = 2,048, D = 768 and two models: 4 * 2BcD = 2.06 TFLOP a round are 30.9 in 15 rounds, which
take 39 ms at 800 TFLOP/s in bfloat16; 2.0e10 softplus at one exp2 each take 5 ms at 132 SMs * 16 * 1.8 GHz; 15 GB of
embeddings, read once a round, take 4 ms at 4 TB/s, beside the products. An H100 takes 50 ms (docs/sampler.md).
"""

import importlib.util
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# A step of a product takes so many bytes of a row: one swizzled line of shared memory.
STEP_BYTES = 128
# The number of picks of every tile divides this.
MOST_COLUMNS = 256


@dataclass(frozen=True)
class StripModel:
    """One model's embeddings of all candidates, [B, D], and of the newest picks, [c, D], and how they make losses.

    All four lie on one device and have one dtype: bfloat16, float16, or float32, whose products are taken in TF32 (10
    bits of fraction). logit = scale * <image, text> + bias, and `weight` multiplies the losses. Raises ValueError for
    tensors that do not fit together.
    """

    image: Tensor
    text: Tensor
    picked_image: Tensor
    picked_text: Tensor
    scale: float
    bias: float
    weight: float

    def __post_init__(self) -> None:
        image, text, picked_image, picked_text = all_ = (self.image, self.text, self.picked_image, self.picked_text)
        if len({(z.dtype, z.device) for z in all_}) > 1 or image.dtype not in DTYPES:
            raise ValueError(f"embeddings are {[(z.dtype, z.device) for z in all_]}; must agree, in one of {DTYPES}")
        shapes = [tuple(z.shape) for z in all_]
        matched = image.shape == text.shape and picked_image.shape == picked_text.shape
        matched = matched and image.dim() == 2 and image.shape[1:] == picked_image.shape[1:]
        if not matched or 0 in (*shapes[0], *shapes[2]):
            raise ValueError(f"embeddings have shapes {shapes}; must be [B, D], [B, D], [c, D], [c, D], none empty")


def available(device: torch.device) -> bool:
    """Whether `strips` runs on tensors of this device.

    They need Triton 3.4 or newer and a CUDA device of compute capability 9.0 or newer (it is made for 9.0; older ones
    lack its tensor copies, and spill); or, on any device, Triton's interpreter: TRITON_INTERPRET=1, set before Triton
    is first imported.
    """
    able = (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (9, 0)
    )
    if not able and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    try:
        return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    except ImportError:
        return False


def strips(models: Sequence[StripModel], out: Tensor | None = None) -> Tensor:
    """What the newest picks add to every candidate's score, float64 [B].

    strip_i = sum over models and picks k of weight * (softplus(scale * <text_i, picked_image_k> + bias)
    + softplus(scale * <image_i, picked_text_k> + bias)). If there is `out`, float64 [B], they are added to it, and it
    is returned.

    The same tensors give the same bits: there are no atomics, and each sum has one owner and one order. Extra memory is
    8 bytes a candidate, and a copy of embeddings whose rows are not contiguous or no multiple of 16 bytes. The first
    call for a D and dtype compiles and times a few tiles, for seconds: make it before serving, at the size to be
    served.

    Raises ValueError without models or when they, or `out`, differ in B or device.
    """
    if not models:
        raise ValueError("models is empty; must have at least one")
    count, device = len(models[0].image), models[0].image.device
    total = torch.zeros(count, dtype=torch.float64, device=device) if out is None else out
    if total.dtype != torch.float64 or total.shape != (count,) or total.device != device:
        raise ValueError(
            f"out is {total.dtype} {tuple(total.shape)} on {total.device}; must be float64 {(count,)} on {device}"
        )
    if any(len(model.image) != count or model.image.device != device for model in models):
        raise ValueError("models differ in B or device; must agree")
    sums = torch.empty(count, dtype=torch.float64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for model in models:
            for candidates, picks in ((model.text, model.picked_image), (model.image, model.picked_text)):
                _launch(candidates, picks, sums, model.scale, model.bias)
                total.add_(sums, alpha=model.weight)
    return total


def _launch(candidates: Tensor, picks: Tensor, sums: Tensor, scale: float, bias: float) -> None:
    """Sets sums_i = sum over k of softplus(scale * <candidates_i, picks_k> + bias)."""
    # It is imported only here, so that this module can be imported without Triton.
    from selector_server.sampling.losses.kernel_triton import INTERPRETED, TensorDescriptor, side  # noqa: PLC0415

    candidates, picks = _aligned(candidates), _aligned(picks)
    (count, depth), size = candidates.shape, len(picks)
    side[lambda tile: (-(-count // tile["rows"]),)](
        TensorDescriptor.from_tensor(candidates, [1, 1]),  # the tile sets the block's shape
        TensorDescriptor.from_tensor(picks, [1, 1]),
        sums,
        count,
        size,
        depth,
        scale * math.log2(math.e),
        bias * math.log2(math.e),
        width=STEP_BYTES // candidates.element_size(),
        ragged=size % MOST_COLUMNS != 0,
        widen=INTERPRETED,
        enable_fp_fusion=True,
    )


def _aligned(z: Tensor) -> Tensor:
    """The matrix as the GPU's tensor copies want it: contiguous, and its start and rows at multiples of 16 bytes."""
    missing = -z.shape[1] % (16 // z.element_size())
    z = torch.nn.functional.pad(z, (0, missing)) if missing else z.contiguous()  # a pad of 0 would copy
    return z if z.data_ptr() % 16 == 0 else z.clone()
