"""An int8 variant of a reference: faster on CPUs, and written only if it ranks samples as the original does (needs the
extra `reference`)."""

import logging
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selector_server.encoding import bundle as b
from selector_server.encoding.bundle import Bundle
from selector_server.encoding.device import Device
from selector_server.encoding.export import new_folder
from selector_server.encoding.model import Model
from selector_server.encoding.ranks import rank_correlation
from selector_server.errors import BundleError
from selector_server.machine import usable_cpus

LEAST_CORRELATION = 0.99
# Convolutions and tables of words stay as they are: there int8 costs more accuracy than it saves time.
_OPERATORS = ["MatMul", "Gemm"]
_ONE_FILE = 1 << 30  # protobuf holds twice that


def quantise_reference(
    bundle: Bundle, path: Path, pixels: NDArray[np.uint8], tokens: NDArray[np.int64]
) -> tuple[Bundle, float]:
    """Writes `bundle` to `path` with int8 matrices, one scale each; activations are scaled as they come. Returns it
    with the rank correlation of its own-pair scores with the original's, on samples uint8 [n, H, W, C] and int64
    [n, T]. Raises BundleError below LEAST_CORRELATION, and then writes nothing."""
    manifest = bundle.manifest
    if (manifest.role, manifest.precision) != ("reference", "fp32"):
        limit = "only a reference in fp32 can be quantised"
        raise BundleError(f"{bundle.path}: precision", f"{manifest.precision} ({manifest.role})", limit)
    towers = (b.IMAGE_TOWER, b.TEXT_TOWER)
    with new_folder(path) as folder:
        for tower in towers:
            _quantise(bundle.path / tower, folder / tower)
        others = [name for name in manifest.files if not name.endswith((".onnx", ".onnx.data"))]
        for name in others:
            shutil.copyfile(bundle.path / name, folder / name)
        written = [file.name for file in folder.iterdir()]
        small = b.save(folder, manifest.model_copy(update={"precision": "int8"}), written)
        correlation = rank_correlation(*(own_scores(each, pixels, tokens) for each in (bundle, small)))
        if not correlation >= LEAST_CORRELATION:  # NaN fails too
            limit = f"must be at least {LEAST_CORRELATION} on {len(pixels)} samples; not written"
            raise BundleError("int8, rank correlation with fp32", f"{correlation:.4f}", limit)
        folder.rename(path)
    return b.load(path, "reference"), correlation


def own_scores(bundle: Bundle, pixels: NDArray[np.uint8], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits of each image with its own text, float64 [n], computed on the CPU."""
    device = Device("cpu", usable_cpus())
    model = Model(bundle, device, device.kind.micro_batch)
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
