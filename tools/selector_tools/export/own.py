"""Builds a module of one's own from a factory in the trainer's code and from what the command line tells of it."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_server.errors import SetupError
from selector_tools.export.building import Architecture
from selector_tools.export.torch_model import TorchModel
from selector_tools.mistakes import in_one_line


@dataclass(frozen=True)
class Told:
    """What the command line says about the module, because it cannot be read off it."""

    channels: Literal[1, 3]
    max_tokens: int
    vocabulary: int
    logit_scale: str
    logit_scale_is_log: bool
    logit_bias: str | None
    loss: str | None
    tokens_at: str


def architecture(path: str, told: Told, image_size: int | None, patch_size: int | None) -> Architecture:
    """Returns the architecture that the factory at `path`, package.module:factory, makes. Sizes that the factory
    neither takes nor has are those of the command line. Raises SetupError."""
    factory = _factory(path)
    parameters = inspect.signature(factory).parameters

    def build(image: int | None, patch: int | None) -> TorchModel:
        asked = {"image_size": image, "patch_size": patch}
        if image is None and patch is None:  # a factory that must be told gets what there is
            told_sizes = {"image_size": image_size, "patch_size": patch_size}
            asked = {name: size for name, size in told_sizes.items() if _required(name, parameters)}
        module = _called(path, factory, {name: size for name, size in asked.items() if size is not None})
        own_image = image or _own("image_size", module, parameters) or image_size
        own_patch = patch or _own("patch_size", module, parameters) or patch_size
        if own_image is None:
            limit = "does not tell its image size: give --image-size, or the factory's image_size a default"
            raise SetupError("--module", path, limit)
        return _described(path, module, told, own_image, own_patch)

    return Architecture(build, "bicubic", antialias=True)


def _factory(path: str) -> Callable[..., Any]:
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        raise SetupError("--module", path, "must be package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # whatever the user's code raises
        raise SetupError("--module", path, f"cannot be imported: {in_one_line(error, kind=True)}") from error
    if not callable(factory):
        raise SetupError("--module", path, f"is a {type(factory).__name__}; must be callable")
    return factory  # type: ignore[no-any-return]


def _called(path: str, factory: Callable[..., Any], sizes: dict[str, int]) -> nn.Module:
    try:
        module = factory(**sizes)
    except Exception as error:  # whatever the user's code raises
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise SetupError(
            "--module", path, f"called with ({given}) it raises {in_one_line(error, kind=True)}"
        ) from error
    inner = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module) or not all(hasattr(inner, name) for name in ("encode_image", "encode_text")):
        limit = "must return a torch module with encode_image and encode_text"
        raise SetupError("--module", path, f"returns a {type(module).__name__}; {limit}")
    return module.eval()


def _required(name: str, parameters: Mapping[str, inspect.Parameter]) -> bool:
    return name in parameters and parameters[name].default is inspect.Parameter.empty


def _own(name: str, module: nn.Module, parameters: Mapping[str, inspect.Parameter]) -> int | None:
    """Returns a size that the module has as an attribute, or else the factory as a default."""
    value = getattr(module, name, None)
    if not isinstance(value, int) and name in parameters:
        value = parameters[name].default
    return value if isinstance(value, int) else None


def _described(path: str, module: nn.Module, told: Told, image_size: int, patch_size: int | None) -> TorchModel:
    model = TorchModel(
        name=path.rpartition(":")[2][:128],
        module=module,
        image=ImageInput(height=image_size, width=image_size, channels=told.channels),
        text=TextInput(max_tokens=told.max_tokens, vocabulary=told.vocabulary),
        logit=Logit(scale_parameter=told.logit_scale, scale_is_log=told.logit_scale_is_log),
        origin=path,
        patch=None if patch_size is None else (patch_size, patch_size),
        tokens_at=told.tokens_at,
    )
    bias = told.logit_bias or ("logit_bias" if "logit_bias" in model.state else None)
    for flag, name in (("--logit-scale", told.logit_scale), ("--logit-bias", bias)):
        if name is not None and name not in model.state:
            raise SetupError(flag, name, "must be an entry of the module's state_dict")
    if told.tokens_at and told.tokens_at not in dict(model.module.named_modules()):
        raise SetupError("--tokens-at", told.tokens_at, "must be a submodule")
    return replace(
        model,
        logit=model.logit.model_copy(update={"bias_parameter": bias}),
        loss=told.loss or ("softmax" if bias is None else "sigmoid"),
    )
