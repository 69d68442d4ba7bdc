"""Writes an int8 variant of a reference: faster on CPUs, and only if it ranks samples as the original does (needs the
extra `reference`)."""

import logging
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding import bundle as bundles
from selector_server.encoding.bundle import IMAGE_TOWER, TEXT_TOWER, Bundle
from selector_server.encoding.device import Device
from selector_server.encoding.model import Model
from selector_server.errors import BundleError
from selector_server.machine import usable_cpus
from selector_server.sampling.threads import use_threads
from selector_tools.export.bundle_writer import new_folder, write_manifest
from selector_tools.reference.rank_statistics import rank_correlation

LEAST_CORRELATION = 0.99
# Convolutions and tables of words stay as they are: there int8 costs more accuracy than it saves time.
_OPERATORS = ["MatMul", "Gemm"]
_ONE_FILE = 1 << 30  # a protobuf message holds at most twice that


def quantise_reference(
    bundle: Bundle, path: Path, pixels: NDArray[np.uint8], tokens: NDArray[np.int64]
) -> tuple[Bundle, float]:
    """Writes `bundle` to `path` with int8 matrices, one scale each; activations are scaled as they come. Returns the
    new bundle and the rank correlation of its own-pair scores with the original's, on samples uint8 [n, H, W, C] and
    int64 [n, T]. Raises BundleError if that is below LEAST_CORRELATION, and then writes nothing."""
    manifest = bundle.manifest
    if (manifest.role, manifest.precision) != ("reference", "fp32"):
        limit = "only a reference in fp32 can be quantised"
        raise BundleError(f"{bundle.path}: precision", f"{manifest.precision} ({manifest.role})", limit)
    with new_folder(path) as folder:
        for tower in (IMAGE_TOWER, TEXT_TOWER):
            _quantise(bundle.path / tower, folder / tower)
        for name in manifest.files:
            if not name.endswith((".onnx", ".onnx.data")):
                shutil.copyfile(bundle.path / name, folder / name)
        small = write_manifest(folder, manifest.model_copy(update={"precision": "int8"}))
        correlation = rank_correlation(*(own_scores(each, pixels, tokens) for each in (bundle, small)))
        if not correlation >= LEAST_CORRELATION:  # NaN fails too
            limit = f"must be at least {LEAST_CORRELATION} on {len(pixels)} samples; not written"
            raise BundleError("int8, rank correlation with fp32", f"{correlation:.4f}", limit)
        folder.rename(path)
    return bundles.load(path, "reference"), correlation


def on_cpu(bundle: Bundle) -> Model:
    """Loads a bundle's model on all usable processors."""
    use_threads(usable_cpus())
    device = Device("cpu")
    return Model(bundle, device, device.kind.micro_batch)


def own_scores(bundle: Bundle, pixels: NDArray[np.uint8], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Computes the logits of each image with its own text, float64 [n], on the CPU."""
    model = on_cpu(bundle)
    return model.encode(pixels, tokens, model.constant_weights()).own_logits.numpy()


def _quantise(tower: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - takes seconds

    data = sum(file.stat().st_size for file in tower.parent.glob(f"{tower.name}*"))
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises preprocessing, which an exported tower has behind it
    try:
        quantize_dynamic(
            tower,
            target,
            op_types_to_quantize=_OPERATORS,
            per_channel=False,
            weight_type=QuantType.QInt8,
            use_external_data_format=data > _ONE_FILE,
        )
    finally:
        logging.disable(before)
