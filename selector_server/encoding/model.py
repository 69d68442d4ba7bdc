"""A model of two towers, from its bundle: the learner, whose weights come and go, or the reference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from selector_proto import safetensors
from selector_proto.safetensors import LayoutError, TensorView

from selector_server.encoding.bundle import IMAGE_TOWER, PIXELS, TEXT_TOWER, TOKENS, WEIGHTS, Bundle, Logit
from selector_server.encoding.tower import Bound, Device, Tower
from selector_server.errors import BundleError, NotPossible
from selector_server.sampling import MAX_LOGIT, Embedded

_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class Weights:
    """One immutable set: device-resident graph inputs, and the logit scale and bias that belong to them."""

    bound: Bound
    scale: float
    bias: float


class Model:
    """Two towers of one bundle on one device."""

    def __init__(self, bundle: Bundle, device: Device, micro_batch: int) -> None:
        self.bundle, self._device = bundle, device
        self._image = Tower(bundle.path / IMAGE_TOWER, PIXELS, device, micro_batch)
        self._text = Tower(bundle.path / TEXT_TOWER, TOKENS, device, micro_batch)
        self.providers = self._image.providers
        self._shapes = self._image.weight_shapes | self._text.weight_shapes
        mapped = sorted(bundle.manifest.parameters.values())
        if mapped != sorted(self._shapes):
            odd = sorted(set(mapped).symmetric_difference(self._shapes))[:5]
            raise BundleError(f"{bundle.path}: parameters", odd, "must name each weight input of the graphs once")

    def encode(self, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], weights: Weights) -> Embedded:
        """uint8 [B, H, W, C] and int64 [B, T] to normalised embeddings [B, D] on the device."""
        image = self._image.encode(pixels, weights.bound)
        text = self._text.encode(tokens, weights.bound)
        embedded = Embedded.normalise(image, text, weights.scale, weights.bias)
        if not bool(torch.isfinite(embedded.image).all() & torch.isfinite(embedded.text).all()):
            name = self.bundle.manifest.name
            raise NotPossible(f"embedding of {name}", "NaN or infinite", "its weights are broken")
        return embedded

    def constant_weights(self) -> Weights:
        """What a reference encodes with: nothing to bind, scale and bias from the manifest."""
        manifest = self.bundle.manifest
        assert manifest.logit_scale is not None
        return Weights({}, manifest.logit_scale, manifest.logit_bias)

    def bundled_weights(self) -> Weights:
        """The weights that a learner's bundle was exported with."""
        try:
            return self.bind(safetensors.decode(memoryview((self.bundle.path / WEIGHTS).read_bytes())))
        except (LayoutError, NotPossible) as error:
            raise BundleError("weights", self.bundle.path / WEIGHTS, str(error)) from error

    def bind(self, tensors: Mapping[str, TensorView]) -> Weights:
        """A new set from the trainer's tensors, by their state_dict names. The old set is not touched.

        Raises NotPossible for a missing or misshapen parameter, for a value that is not finite, and if a probe
        batch encoded with the new set does not come out finite. Tensors the graphs do not use are ignored.
        """
        manifest = self.bundle.manifest
        assert manifest.logit is not None
        bound = {}
        for name, graph_input in manifest.parameters.items():
            array = _as_float32(name, tensors, self._shapes[graph_input])
            bound[graph_input] = self._device.put(array)
        scale, bias = _logit(manifest.logit, tensors)
        weights = Weights(bound, scale, bias)
        self.encode(*self._probe(), weights)
        return weights

    def _probe(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Two fixed samples."""
        image, text = self.bundle.manifest.image, self.bundle.manifest.text
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (2, image.height, image.width, image.channels), dtype=np.uint8)
        return pixels, rng.integers(0, text.vocabulary, (2, text.max_tokens))


def _as_float32(name: str, tensors: Mapping[str, TensorView], shape: tuple[Any, ...]) -> NDArray[np.float32]:
    view = tensors.get(name)
    if view is None:
        raise NotPossible(f"parameter {name}", "missing", f"the learner needs it with shape {list(shape)}")
    if view.shape != shape:
        raise NotPossible(f"parameter {name}", list(view.shape), f"the learner needs shape {list(shape)}")
    if view.dtype not in _TORCH:
        raise NotPossible(f"parameter {name}", view.dtype, f"must be one of {', '.join(_TORCH)}")
    # A copy of our own: on a CPU the graph input aliases it. frombuffer wants a writable buffer; nothing writes.
    raw = torch.from_numpy(np.frombuffer(view.data, dtype=np.uint8).copy())
    values = raw.view(_TORCH[view.dtype]).to(torch.float32).reshape(shape)
    if not bool(torch.isfinite(values).all()):
        raise NotPossible(f"parameter {name}", "NaN or infinite", "every value must be finite")
    return values.numpy()


def _logit(logit: Logit, tensors: Mapping[str, TensorView]) -> tuple[float, float]:
    stored = _scalar(logit.scale_parameter, tensors)
    scale = math.exp(min(stored, 700.0)) if logit.scale_is_log else stored
    if not 0 < scale <= MAX_LOGIT:
        limit = f"must be positive and at most {MAX_LOGIT:g}"
        raise NotPossible(f"logit scale {logit.scale_parameter}", scale, limit)
    bias = 0.0 if logit.bias_parameter is None else _scalar(logit.bias_parameter, tensors)
    if abs(bias) > MAX_LOGIT:
        raise NotPossible(f"logit bias {logit.bias_parameter}", bias, f"at most {MAX_LOGIT:g}, either sign")
    return scale, bias


def _scalar(name: str, tensors: Mapping[str, TensorView]) -> float:
    view = tensors.get(name)
    shape: tuple[int, ...] = () if view is None or view.shape != (1,) else (1,)
    return float(_as_float32(name, tensors, shape).reshape(()))
