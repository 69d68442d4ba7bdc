"""The weights that a model with adapters (LoRA) computes with, without changing the model.

A sidecar knows the parameters of the model that its bundle was made of, not those of an adapter beside them. So each
adapted weight is published as W + s B A. The libraries are recognised by what their layers look like, not imported.
"""

import copy
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from selector_proto.weights.names import adapted

# These tuners of peft add something to the weight, and their `get_delta_weight` returns what they add.
_ADDITIVE = ("lora", "loha", "lokr")
_ROOT = ("base_model", "model")  # the names under which a PeftModel has its model


@dataclass(frozen=True)
class Merged:
    """A weight and the adapters on it, which are added when it is its turn: all sums at once may not fit into memory.
    `base` is the weight without them, and `target` what it is in its layer."""

    base: Any
    layer: Any
    adapters: tuple[str, ...]
    target: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(self.base.shape)

    @property
    def sharded(self) -> bool:
        """Whether all ranks must take part in `whole`."""
        return hasattr(self.base, "full_tensor")

    def whole(self) -> Any:
        """Computes the sum, in the weight's own dtype as peft does, on its device."""
        with sys.modules["torch"].no_grad():
            if _is_attention(self.layer):
                return self._of_copy()
            total = self.base.detach()
            for adapter in self.adapters:
                total = total + self._delta(adapter).to(total.dtype)
            return total.full_tensor() if self.sharded else total

    def _delta(self, adapter: str) -> Any:
        if self.target == "bias":
            return self.layer.lora_B[adapter].bias * self.layer.scaling[adapter]
        return self.layer.get_delta_weight(adapter)

    def _of_copy(self) -> Any:
        """Lets a copy of the layer merge itself. Attention computes with merged weights, and peft (0.14 to 0.21) adds
        to `out_proj` twice: nobody else knows what it computes with."""
        layer = copy.deepcopy(self.layer)
        layer.merge(adapter_names=list(self.adapters))
        return operator.attrgetter(self.target)(layer.base_layer).detach()


@dataclass(frozen=True)
class Unmerged:
    """A weight with an adapter that cannot be added to it; `reason` says why."""

    reason: str


class _Kind(Enum):
    """What peft made of a module."""

    MODEL = "PeftModel"
    TUNER = "a layer that has its original as base_layer"
    COPIED = "ModulesToSaveWrapper"
    TOKENS = "TrainableTokensWrapper"


def merged_state(model: Any) -> dict[str, Any]:
    """Returns the state_dict of a module, or the mapping that `model` is, without adapters: under the name of each
    weight that has one stands a `Merged` or an `Unmerged`."""
    module = hasattr(model, "state_dict")
    state: Mapping[str, Any] = model.state_dict() if module else model
    named = model.named_modules() if module and hasattr(model, "named_modules") else ()
    layers = {path: (kind, layer) for path, layer in named if (kind := _kind(layer)) is not None}
    if not layers and not any(adapted(name) is not None for name in state):
        return dict(state)
    found: dict[str, Any] = {}
    unmerged: dict[str, Unmerged] = {}
    for name, value in state.items():
        if (place := _place(name, layers)) is None:
            continue
        if (changed := adapted(place)) is not None:  # no layer above knows it
            changed = changed.removeprefix(".".join(_ROOT) + ".")
            unmerged.setdefault(changed, Unmerged(f"{name} belongs to an adapter that is not merged"))
        else:
            found[place] = value
    for path, (kind, layer) in reversed(layers.items()):  # what contains another layer has the last word
        for name, one in _merged(path, layer, state).items() if kind is _Kind.TUNER else ():
            found[str(_place(name, layers))] = one
    return found | unmerged


def _kind(layer: Any) -> _Kind | None:
    # Wrappers lend the attributes of what they wrap, so that only children count.
    children = {name for name, _ in layer.named_children()}
    if "base_model" in children and hasattr(layer, "peft_config"):
        return _Kind.MODEL
    if "base_layer" in children and hasattr(layer, "active_adapters"):
        return _Kind.TUNER
    if type(layer).__name__ == _Kind.COPIED.value:
        return _Kind.COPIED
    return _Kind.TOKENS if "token_adapter" in children else None


def _is_attention(layer: Any) -> bool:
    return type(layer).__name__ == "MultiheadAttention"


def _place(name: str, layers: Mapping[str, tuple[_Kind, Any]]) -> str | None:
    """The name that an entry has without adapters; None for what belongs to an adapter that is merged or not in use."""
    segments, kept, at = name.split("."), list[str](), 0
    while at < len(segments):
        nothing: tuple[None, Any] = (None, None)
        kind, layer = layers.get(".".join(segments[:at]), nothing)
        segment, skipped = segments[at], 1
        if kind is _Kind.MODEL and tuple(segments[at : at + 2]) == _ROOT:
            skipped = 2
        elif kind is _Kind.TUNER:
            if segment != "base_layer":
                return None
        elif kind is _Kind.COPIED:
            used = [] if layer.disable_adapters else list(layer.active_adapters[:1])
            skipped = 1 + len(used)
            if segments[at : at + skipped] != (["modules_to_save", *used] if used else ["original_module"]):
                return None
        elif kind is not _Kind.TOKENS or segment != "token_adapter":
            kept.append(segment)
        at += skipped
    return ".".join(kept)


def _merged(path: str, layer: Any, state: Mapping[str, Any]) -> dict[str, Merged | Unmerged]:
    """Returns what stands for the entries of `state` that the layer's adapters change."""
    if layer.merged or layer.disable_adapters:
        return {}
    names = [name for name in layer.adapter_layer_names if hasattr(layer, name)]
    active = tuple(a for a in layer.active_adapters if any(a in getattr(layer, name) for name in names))
    if not active:
        return {}
    targets = ["in_proj_weight", "out_proj.base_layer.weight"] if _is_attention(layer) else ["weight"]
    if biased := tuple(adapter for adapter in active if getattr(layer, "lora_bias", {}).get(adapter)):
        targets.append("bias")
    found: dict[str, Merged | Unmerged] = {}
    for target in targets:
        name = f"{path}.base_layer.{target}"
        if problem := _problem(layer, active, state.get(name)):
            return {f"{path}.base_layer.{targets[0]}": Unmerged(f"{path} has {problem}, and cannot be merged")}
        found[name] = Merged(state[name], layer, biased if target == "bias" else active, target)
    return found


def _problem(layer: Any, active: tuple[str, ...], weight: Any) -> str:
    """Why the adapters cannot be added to the weight; empty if they can."""
    module = type(layer).__module__.split(".")
    tuner = module[2] if module[:2] == ["peft", "tuners"] and len(module) > 2 else ".".join(module)
    variants = getattr(layer, "lora_variant", {})
    for adapter in active:
        if adapter in variants or getattr(layer, "use_dora", {}).get(adapter):
            kind = type(variants[adapter]).__name__ if adapter in variants else "DoRA"
            return f"a variant of LoRA ({kind})"
    if tuner not in _ADDITIVE or not hasattr(layer, "get_delta_weight") or type(layer).__name__ == "ParamWrapper":
        return f"an adapter of another kind than LoRA, LoHa or LoKr ({tuner}, {type(layer).__name__})"
    if weight is None or not weight.is_floating_point():
        return "an adapter on a weight that is " + ("not in the state_dict" if weight is None else "quantised")
    return ""
