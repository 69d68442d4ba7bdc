"""Compares a bundle with the torch model that it came from, run as the sidecar will run it."""

import numpy as np
import torch

from selector_server.encoding.bundle import Bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.errors import BundleError
from selector_tools.export.torch_model import TorchModel

SAMPLES = 5
MICRO_BATCH = 3  # so that the batch size changes on the way
# The largest difference that is accepted, relative to the largest value of torch's embeddings.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}


def difference_to_torch(bundle: Bundle, model: TorchModel) -> float:
    """Returns the largest absolute difference of ONNX Runtime's embeddings to torch's, over random samples. Graphs in
    bfloat16, which no CPU runs, are not compared; for them it is NaN. Raises BundleError if the difference is more than
    rounding explains."""
    manifest = bundle.manifest
    if manifest.precision == "bf16":
        return float("nan")
    served = Model(bundle, Device("cpu"), MICRO_BATCH)
    weights = served.bundled_weights() if manifest.role == "learner" else served.constant_weights()
    rng, image, text = np.random.default_rng(0), manifest.image, manifest.text
    pixels = rng.integers(0, 256, (SAMPLES, image.height, image.width, image.channels), dtype=np.uint8)
    tokens = rng.integers(0, text.vocabulary, (SAMPLES, text.max_tokens))
    try:
        found = served.raw(pixels, tokens, weights)
    except RuntimeError as error:  # onnxruntime's own words come after the first line
        reason = " ".join(str(error).split())[:300]
        limit = "the graph must take any batch size: encode_image and encode_text must not turn it into a number"
        raise BundleError(manifest.name, f"a batch of {MICRO_BATCH}", f"{limit} ({reason})") from error
    module, worst = model.frozen(torch.float32), 0.0
    with torch.inference_mode():
        images = model.normalised(torch.from_numpy(pixels))
        wanted = model.encode_image(module, images), model.encode_text(module, torch.from_numpy(tokens))
    for ours, theirs, tower in zip(found, wanted, ("image", "text"), strict=True):
        difference = float((ours.cpu() - theirs).abs().max())
        most = TOLERANCES[manifest.precision] * max(1.0, float(theirs.abs().max()))
        if not difference <= most:
            raise BundleError(f"{tower} tower: difference to torch", difference, f"at most {most:g}; not written")
        worst = max(worst, difference)
    return worst
