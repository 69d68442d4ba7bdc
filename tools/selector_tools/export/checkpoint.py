"""Reads a checkpoint and loads it strictly: a model that lacks some weights would be wrong without any error."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from selector_proto import safetensors
from torch import Tensor, nn

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Training loops wrap a state_dict in one of these entries, and put one of these prefixes before its names.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


def load(module: nn.Module, file: Path) -> None:
    """Replaces every parameter and buffer of `module` by that in `file`. Raises SetupError if they do not fit."""
    found, wanted = read(file), module.state_dict()
    problems = [
        _listed("missing", wanted.keys() - found.keys()),
        _listed("unexpected", found.keys() - wanted.keys()),
        _listed(
            "misshapen",
            (
                f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
                for name in wanted.keys() & found.keys()
                if found[name].shape != wanted[name].shape
            ),
        ),
    ]
    if any(problems):
        raise SetupError("--checkpoint", file, f"does not fit the model: {'; '.join(filter(None, problems))}")
    module.load_state_dict(found)


def _listed(what: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{what} {', '.join(ordered[:_SHOWN])}{more}" if ordered else ""


def read(file: Path) -> dict[str, Tensor]:
    """Returns the state_dict in a .safetensors or torch file, unwrapped and without prefixes. Raises SetupError."""
    try:
        content = _safetensors(file) if file.suffix == ".safetensors" else _torch(file)
    except OSError as error:
        raise SetupError("--checkpoint", file, str(error.strerror or error)) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(inner := content.get(key), Mapping):
            content = inner
    if not isinstance(content, Mapping) or not content:
        raise SetupError("--checkpoint", file, f"holds a {type(content).__name__}; must hold a state_dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise SetupError("--checkpoint", file, f"entry {key!r} is a {type(value).__name__}; must be a tensor")
    return _without_prefixes(dict(content))


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefixes({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _torch(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        limit = f"must be a torch file of tensors or .safetensors: {in_one_line(error)}"
        raise SetupError("--checkpoint", file, limit) from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        views = safetensors.decode(memoryview(file.read_bytes()))
    except safetensors.LayoutError as error:
        raise SetupError("--checkpoint", file, str(error)) from error
    if odd := sorted({view.dtype for view in views.values()} - _DTYPES.keys()):
        raise SetupError("--checkpoint", file, f"has tensors of {', '.join(odd)}; must be {', '.join(_DTYPES)}")
    return {
        name: torch.from_numpy(np.frombuffer(view.data, np.uint8).copy()).view(_DTYPES[view.dtype]).reshape(view.shape)
        for name, view in views.items()
    }
