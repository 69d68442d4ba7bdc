"""Writes bundles from torch modules (needs the extra `export`).

The recipe matters: exported otherwise, torch folds and merges parameters, and weights loaded "by name" later give a
wrong model without any error. With `optimize=False` and initializers left out, every parameter is a graph input
under its own name.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import torch
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from torch import Tensor, nn

from selector_server.encoding import bundle as b
from selector_server.encoding.bundle import Bundle, ImageInput, Logit, Manifest, TextInput
from selector_server.errors import BundleError

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}


class TwoTower(Protocol):
    """What can be exported: an nn.Module with these two methods."""

    def encode_image(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W], normalised, to [B, D]."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] to [B, D]."""


class _ImageTower(nn.Module):
    """uint8 [B, H, W, C] to embeddings: a quarter of the bytes of float32 travel to the device."""

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0 - self.mean) / self.std
        return cast(TwoTower, self.model).encode_image(images)


class _TextTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(TwoTower, self.model).encode_text(tokens)


def export_learner(
    model: nn.Module,
    path: Path,
    *,
    name: str,
    image: ImageInput,
    text: TextInput,
    logit: Logit,
    mean: float = 0.5,
    std: float = 0.5,
    tokenizer: Path | None = None,
) -> Bundle:
    """A bundle whose weights a trainer can replace by publishing `model.state_dict()`.

    `model` is a module with TwoTower's methods; `logit` names its parameters for scale and bias. Raises BundleError
    if a graph input is not an entry of the state_dict.
    """
    with _folder(path) as folder:
        inputs: set[str] = set()
        for tower, file, sample in _towers(model, image, text, mean, std):
            program = _trace(tower, sample, optimize=False)
            program.save(str(folder / file), include_initializers=False, keep_initializers_as_inputs=True)
            inputs |= program.model.graph.initializers.keys()
        state = model.state_dict()
        parameters = {graph_input.removeprefix("model."): graph_input for graph_input in sorted(inputs)}
        if unknown := sorted(parameters.keys() - state.keys()):
            raise BundleError("graph inputs", unknown[:5], "must be entries of the module's state_dict")
        kept = {*parameters, logit.scale_parameter, logit.bias_parameter} - {None}
        _write_weights(folder / b.WEIGHTS, {key: value for key, value in state.items() if key in kept})
        manifest = Manifest(
            name=name,
            role="learner",
            width=_width(model, text),
            image=image,
            text=text,
            logit=logit,
            parameters=parameters,
            files={},
        )
        b.save(folder, manifest, [*_with_tokenizer(folder, tokenizer), b.WEIGHTS])
    return b.load(path, "learner")


def export_reference(
    model: nn.Module,
    path: Path,
    *,
    name: str,
    image: ImageInput,
    text: TextInput,
    logit_scale: float,
    logit_bias: float,
    mean: float = 0.5,
    std: float = 0.5,
    tokenizer: Path | None = None,
) -> Bundle:
    """A bundle whose weights are constants, optimised once. `logit_scale` is the multiplier itself."""
    with _folder(path) as folder:
        for tower, file, sample in _towers(model, image, text, mean, std):
            _trace(tower, sample, optimize=True).save(str(folder / file))
        manifest = Manifest(
            name=name,
            role="reference",
            width=_width(model, text),
            image=image,
            text=text,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            files={},
        )
        b.save(folder, manifest, _with_tokenizer(folder, tokenizer))
    return b.load(path, "reference")


def _towers(
    model: nn.Module, image: ImageInput, text: TextInput, mean: float, std: float
) -> Iterator[tuple[nn.Module, str, tuple[str, Tensor]]]:
    pixels = torch.zeros((2, image.height, image.width, image.channels), dtype=torch.uint8)
    tokens = torch.zeros((2, text.max_tokens), dtype=torch.int64)
    yield _ImageTower(model, mean, std), b.IMAGE_TOWER, (b.PIXELS, pixels)
    yield _TextTower(model), b.TEXT_TOWER, (b.TOKENS, tokens)


def _trace(tower: nn.Module, sample: tuple[str, Tensor], *, optimize: bool) -> torch.onnx.ONNXProgram:
    data, tensor = sample
    was_training = tower.training
    # It warns of every torchvision operator that it cannot register; none is used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
        program = torch.onnx.export(
            tower.eval(),
            (tensor,),
            dynamo=True,
            optimize=optimize,
            input_names=[data],
            output_names=[b.EMBEDDING],
            dynamic_shapes=({0: torch.export.Dim("B")},),
            verbose=False,
        )
    tower.train(was_training)
    assert program is not None
    return program


def _width(model: nn.Module, text: TextInput) -> int:
    with torch.no_grad():
        return cast(TwoTower, model).encode_text(torch.zeros((1, text.max_tokens), dtype=torch.int64)).shape[1]


def _write_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    arrays = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    views = {
        key: TensorView(_DTYPES[value.dtype], tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().data)
        for key, value in arrays.items()
    }
    with file.open("wb") as stream:
        stream.writelines(safetensors.encode(views))


def _with_tokenizer(folder: Path, tokenizer: Path | None) -> list[str]:
    names = [b.IMAGE_TOWER, b.TEXT_TOWER]
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / b.TOKENIZER)
        names.append(b.TOKENIZER)
    return names


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` only when everything in it is written."""
    if path.exists():
        raise BundleError("bundle", path, "exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        yield folder
        folder.rename(path)
