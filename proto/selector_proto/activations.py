"""Tells which activation a model computes with. Weights fit a model with another one without any error, since
activations have no parameters."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Classes of torch, open_clip, timm and transformers. Approximations by tanh differ from GELU less than rounding does.
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "GELU": "gelu",
        "GELUActivation": "gelu",
        "GELUTanh": "gelu",
        "NewGELUActivation": "gelu",
        "PytorchGELUTanh": "gelu",
        "FastGELUActivation": "gelu",
        "QuickGELU": "quick_gelu",
        "QuickGELUActivation": "quick_gelu",
    }
)


def activations(model: Any) -> tuple[str, ...]:
    """Returns the kinds of GELU among the submodules of a torch module, sorted. There may be none that are known; a
    mapping of tensors has none."""
    modules = model.modules() if callable(getattr(model, "modules", None)) else ()
    return tuple(sorted({_KINDS[name] for name in (type(module).__name__ for module in modules) if name in _KINDS}))
