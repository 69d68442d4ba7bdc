"""Writes bundles from torch models (needs the extra `export`).

The recipe matters: exported otherwise, torch folds and merges parameters, and weights that are loaded "by name" later
give a wrong model without any error. With `optimize=False`, every parameter keeps its own name, and those that a
trainer publishes become graph inputs; whatever else a graph holds (masks, position ids) stays in it.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from selector_proto import safetensors
from selector_proto.activations import activations
from selector_proto.safetensors import TensorView
from torch import Tensor, nn

from selector_server.encoding import bundle as bundles
from selector_server.encoding.bundle import (
    EMBEDDING,
    IMAGE_TOWER,
    PIXELS,
    TEXT_TOWER,
    TOKENIZER,
    TOKENS,
    WEIGHTS,
    Bundle,
    ImageInput,
    Manifest,
    Parameter,
)
from selector_server.encoding.model import logit_of
from selector_server.errors import BundleError
from selector_tools.export.torch_model import TorchModel
from selector_tools.export.verify import difference_to_torch

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_PREFIX = "model."


@dataclass(frozen=True)
class Exported:
    """`difference` is the largest absolute difference of any value of an embedding to torch's, over random samples."""

    bundle: Bundle
    difference: float


class _ImageTower(nn.Module):
    """Takes uint8 [B, H, W, C] to embeddings: a quarter of the bytes of float32 travel to the device."""

    def __init__(self, module: nn.Module, encode: Callable[[Any, Tensor], Tensor], image: ImageInput, to: torch.dtype):
        super().__init__()
        self.model, self._encode, self._to = module, encode, to
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (image.mean, image.std))
        # This is (x / 255 - mean) / std, in one product and one sum.
        self._factor, self._shift = (1 / (255 * std)).float(), (-mean / std).float()

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) * self._factor + self._shift
        return self._encode(self.model, images.to(self._to)).to(torch.float32)


class _TextTower(nn.Module):
    def __init__(self, module: nn.Module, encode: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._encode = module, encode

    def forward(self, tokens: Tensor) -> Tensor:
        return self._encode(self.model, tokens).to(torch.float32)


def export_learner(model: TorchModel, path: Path, *, precision: Precision = "fp32") -> Exported:
    """Writes a bundle whose weights a trainer can replace by publishing its state_dict. Raises BundleError."""
    weights = {name for name, value in model.state.items() if value.is_floating_point()}
    with new_folder(path) as folder:
        used: set[str] = set()
        for tower, file, sample in _towers(model, precision):
            program = _trace(tower, sample, optimize=False)
            used |= _weights_as_inputs(program, weights)
            program.save(str(folder / file))
        logit = model.logit
        kept = {*used, logit.scale_parameter, logit.bias_parameter} - {None}
        if unknown := sorted(str(name) for name in kept - model.state.keys()):
            raise BundleError("logit", unknown, "must be entries of the model's state_dict")
        _write_weights(folder / WEIGHTS, {key: value for key, value in model.state.items() if key in kept})
        parameters = {name: Parameter(input=_PREFIX + name, resize=model.resizes.get(name)) for name in sorted(used)}
        manifest = _manifest(model, "learner", precision, logit=logit, parameters=parameters)
        return _finish(model, folder, path, manifest)


def export_reference(model: TorchModel, path: Path, *, precision: Precision = "fp32") -> Exported:
    """Writes a bundle whose weights are constants, optimised once. Raises BundleError."""
    with new_folder(path) as folder:
        for tower, file, sample in _towers(model, precision):
            _trace(tower, sample, optimize=True).save(str(folder / file))
        names = {model.logit.scale_parameter, model.logit.bias_parameter} & model.state.keys()
        scale, bias = logit_of(model.logit, tensor_views({str(name): model.state[str(name)] for name in names}))
        manifest = _manifest(model, "reference", precision, logit_scale=scale, logit_bias=bias)
        return _finish(model, folder, path, manifest)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder to write a bundle in, next to `path`, to be renamed to it; what is left of it at the end is
    removed. Raises BundleError if `path` exists."""
    if path.exists():
        raise BundleError("bundle", path, "exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        yield folder


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Writes the manifest over all files that are in the folder, and loads the result. Raises BundleError."""
    digests = {file.name: bundles.digest_of(file) for file in sorted(folder.iterdir())}
    complete = manifest.model_copy(update={"files": digests})
    # What is not known is left out: sidecars of version 0.1 take no field that they do not know.
    unknown = set() if complete.activations else {"activations"}
    (folder / bundles.MANIFEST).write_text(complete.model_dump_json(indent=2, exclude=unknown))
    return bundles.load(folder, manifest.role)


def tensor_views(state: Mapping[str, Tensor]) -> dict[str, TensorView]:
    """Returns floating-point tensors in the form in which a trainer's publication brings them."""
    arrays = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return {
        key: TensorView(_DTYPES[value.dtype], tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().data)
        for key, value in arrays.items()
    }


def _towers(model: TorchModel, precision: Precision) -> Iterator[tuple[nn.Module, str, tuple[str, Tensor]]]:
    """Yields each tower, its file, and the name and an example of its input."""
    to = PRECISIONS[precision]
    module = model.frozen(to)
    image, text = model.image, model.text
    pixels = torch.zeros((2, image.height, image.width, image.channels), dtype=torch.uint8)
    tokens = torch.zeros((2, text.max_tokens), dtype=torch.int64)
    yield _ImageTower(module, model.encode_image, image, to), IMAGE_TOWER, (PIXELS, pixels)
    yield _TextTower(module, model.encode_text), TEXT_TOWER, (TOKENS, tokens)


def _trace(tower: nn.Module, sample: tuple[str, Tensor], *, optimize: bool) -> torch.onnx.ONNXProgram:
    data, tensor = sample
    # It warns of every torchvision operator that it cannot register; none is used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporter uses what torch has deprecated
        program = torch.onnx.export(
            tower.eval(),
            (tensor,),
            dynamo=True,
            optimize=optimize,
            input_names=[data],
            output_names=[EMBEDDING],
            dynamic_shapes=({0: torch.export.Dim("B")},),
            verbose=False,
        )
    assert program is not None
    return program


def _weights_as_inputs(program: torch.onnx.ONNXProgram, weights: Iterable[str]) -> set[str]:
    """Turns the initializers that are `weights` into graph inputs; returns their names as the trainer knows them."""
    graph, found = program.model.graph, set()
    for name in weights:
        value = graph.initializers.pop(_PREFIX + name, None)
        if value is not None:
            value.const_value = None
            graph.inputs.append(value)
            found.add(name)
    return found


def _manifest(model: TorchModel, role: Literal["learner", "reference"], precision: Precision, **more: Any) -> Manifest:
    tokens = torch.zeros((1, model.text.max_tokens), dtype=torch.int64)
    width = model.encode_text(model.frozen(torch.float32), tokens).shape[1]
    return Manifest(
        name=model.name,
        role=role,
        source=model.origin,
        licence=model.licence,
        width=width,
        image=model.image,
        text=model.text,
        loss=model.loss,
        precision=precision,
        patches_kept=model.patches_kept,
        activations=activations(model.module),
        files={},
        **more,
    )


def _finish(model: TorchModel, folder: Path, path: Path, manifest: Manifest) -> Exported:
    """Adds tokenizer and manifest, compares the bundle with torch, and only then gives it its own name."""
    if model.tokenizer is not None:
        shutil.copyfile(model.tokenizer, folder / TOKENIZER)
    difference = difference_to_torch(write_manifest(folder, manifest), model)
    folder.rename(path)
    return Exported(bundles.load(path, manifest.role), difference)


def _write_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    with file.open("wb") as stream:
        stream.writelines(safetensors.encode(tensor_views(state)))
