"""A model has two towers, which come from its bundle. It is the learner, whose weights come and go, or the
reference."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from selector_proto import safetensors
from selector_proto.safetensors import LayoutError, TensorView
from selector_proto.weights import names
from selector_proto.weights.layout import ACTIVATIONS, CANARY, MAX_CANARY
from torch import Tensor

from selector_server.buffers import Pool
from selector_server.encoding.bundle import IMAGE_TOWER, PIXELS, TEXT_TOWER, TOKENS, WEIGHTS, Bundle, Logit, Parameter
from selector_server.encoding.device import Device
from selector_server.encoding.resizing import resized, source_shape
from selector_server.encoding.tower import Bound, Tower
from selector_server.errors import BundleError, NotPossible
from selector_server.sampling import MAX_LOGIT, Embedded
from selector_server.sampling.threads import spread, threads
from selector_server.telemetry.encoding_metrics import EncodingMetrics

# The least cosine that is accepted between the trainer's embedding of each canary sample and ours, by the towers'
# precision. It catches what makes another model: other weights, another architecture, other pixels or tokens, and
# mostly GELU for QuickGELU in weights that are trained, which often leaves less than 0.998. It does not catch what
# moves embeddings less than that: rounding to bfloat16, on the way and in the trainer's own arithmetic, which leaves
# more than 0.9998 and must pass; another activation in weights that are random still; or weights of a few steps
# before. Nor does it see the logit's scale and bias, as embeddings are compared alone, or tokens that no canary
# sample has.
CANARY_COSINE = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.995, "int8": 0.99}
# Encoding must take so long for its time to say what larger batches take.
TIMED_SECONDS = 0.05
# A thread casts so many values of a parameter at a time. The interpreter's lock is taken once for each, for which the
# threads that serve requests wait.
CAST_VALUES = 1 << 20
# Called with a phase's name, it returns a context that times the block inside as that phase.
Timed: TypeAlias = Callable[[str], AbstractContextManager[None]]
_MAX_NAMES = 256
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class Weights:
    """One immutable set of weights: graph inputs on the device, and the logit scale and bias that belong to them."""

    bound: Bound
    scale: float
    bias: float


class Model:
    """The two towers of one bundle on one device. A thread encodes at most `micro_batch` samples at once; see Tower.
    Raises BundleError if the graphs do not fit their manifest."""

    def __init__(
        self, bundle: Bundle, device: Device, micro_batch: int, metrics: EncodingMetrics | None = None
    ) -> None:
        self.bundle, self._device, self._memory = bundle, device, Pool()
        self._micro_batch = micro_batch
        self.seconds_per_sample = 0.0  # what encoding one took when it was measured; 0 before
        self._metrics = metrics or EncodingMetrics()
        width, sizes = bundle.manifest.width, (device, micro_batch, self._metrics)
        self._image = Tower(bundle.path / IMAGE_TOWER, PIXELS, width, *sizes)
        self._text = Tower(bundle.path / TEXT_TOWER, TOKENS, width, *sizes)
        self.providers = self._image.providers
        self._inputs = self._image.weights | self._text.weights
        parameters = bundle.manifest.parameters
        mapped = sorted(parameter.input for parameter in parameters.values())
        if mapped != sorted(self._inputs):
            odd = sorted(set(mapped).symmetric_difference(self._inputs))[:5] or mapped[:5]
            raise BundleError(f"{bundle.path}: parameters", odd, "must name each weight input of the graphs once")
        # The shape that each parameter of the trainer must have, by its name.
        self._shapes = {name: self._source_shape(name, parameter) for name, parameter in parameters.items()}

    @property
    def needs(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all that `bind` needs of a trainer, by name; scale and bias of the logits may also be [1]."""
        logit = self.bundle.manifest.logit
        scalars = () if logit is None else (logit.scale_parameter, logit.bias_parameter)
        return {name: () for name in scalars if name is not None} | self._shapes

    def encode(
        self,
        pixels: NDArray[np.uint8],
        tokens: NDArray[np.int64],
        weights: Weights,
        check: Callable[[], None] = lambda: None,
        rows: NDArray[np.int64] | None = None,
    ) -> Embedded:
        """Encodes pixels uint8 [B, H, W, C] and tokens int64 [B, T] to normalised embeddings [B, D] on the device; if
        `rows`, int64 [n], are given, these samples alone, to [n, D]. `check` is called before each micro-batch. Raises
        NotPossible for embeddings that are not finite, what Tower.encode raises, and what `check` raises."""
        image, text = self.raw(pixels, tokens, weights, check, rows)
        embedded = Embedded.normalise(image, text, weights.scale, weights.bias)
        if not bool(torch.isfinite(embedded.image).all() & torch.isfinite(embedded.text).all()):
            name = self.bundle.manifest.name
            raise NotPossible(f"embedding of {name}", "NaN or infinite", "its weights are broken")
        return embedded

    def raw(
        self,
        pixels: NDArray[np.uint8],
        tokens: NDArray[np.int64],
        weights: Weights,
        check: Callable[[], None] = lambda: None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the towers' own outputs, float32 [B, D] or [n, D] each, neither normalised nor checked."""
        image = self._image.encode(pixels, weights.bound, check, rows)
        return image, self._text.encode(tokens, weights.bound, check, rows)

    def constant_weights(self) -> Weights:
        """Returns what a reference encodes with: there is nothing to bind; scale and bias are the manifest's."""
        manifest = self.bundle.manifest
        assert manifest.logit_scale is not None
        return Weights({}, manifest.logit_scale, manifest.logit_bias)

    def bundled_weights(self) -> Weights:
        """Returns the weights that a learner's bundle was exported with. Raises BundleError."""
        try:
            return self.bind(safetensors.decode(memoryview((self.bundle.path / WEIGHTS).read_bytes())))
        except (LayoutError, NotPossible, ValueError) as error:
            raise BundleError("weights", self.bundle.path / WEIGHTS, str(error)) from error

    def bind(self, tensors: Mapping[str, TensorView], timed: Timed = lambda _: nullcontext()) -> Weights:
        """Makes a new set of the trainer's tensors, by their state_dict names, in which wrappers' parts (`module.`,
        `_orig_mod.`) do not count. No other set is touched. `timed` is told the phases upload, probe and canary.

        Raises NotPossible for a missing or misshapen parameter, for a value that is not finite, for a trainer whose
        model computes with another activation, if a probe batch encoded with the new set does not come out finite, and
        if the samples that the trainer sent along (a canary) are not encoded as the trainer encoded them. Tensors that
        the graphs do not use are ignored.
        """
        self._check_activations(tensors)
        with timed("upload"):
            weights = self._uploaded(self._named(tensors))
        with timed("probe"):
            self.warm_up(weights)
        with timed("canary"):
            self._check_canary(tensors, weights)
        return weights

    def _named(self, tensors: Mapping[str, TensorView]) -> dict[str, TensorView]:
        """Returns what the learner needs under the names that it knows. Raises NotPossible, with what came instead."""
        needs = self.needs
        given = [name for name in tensors if not name.startswith(CANARY)]
        found = names.match(needs, given)
        if first := next((name for name in needs if name not in found), None):
            needed = f"the learner needs it with shape {list(needs[first])}"
            raise NotPossible(f"parameter {first}", "missing", f"{needed}; {names.difference(needs, given)}")
        return {name: tensors[theirs] for name, theirs in found.items()}

    def _uploaded(self, tensors: Mapping[str, TensorView]) -> Weights:
        manifest = self.bundle.manifest
        assert manifest.logit is not None
        found = {name: _checked(name, tensors, shape) for name, shape in self._shapes.items()}
        cast = self._memory.floats({name: math.prod(shape) for name, shape in self._shapes.items()})
        _cast(found, cast)
        inputs = {}
        for name, parameter in manifest.parameters.items():
            value = torch.from_numpy(cast[name]).reshape(self._shapes[name])
            if parameter.resize is not None:
                value = resized(parameter.resize, value)
            _, dtype = self._inputs[parameter.input]
            inputs[parameter.input] = value.to(self._device.torch, dtype).contiguous()
        return Weights(inputs, *logit_of(manifest.logit, tensors))

    def warm_up(self, weights: Weights, count: int = 2) -> None:
        """Encodes a few fixed samples. Raises NotPossible if they do not come out finite."""
        image, text = self.bundle.manifest.image, self.bundle.manifest.text
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (count, image.height, image.width, image.channels), dtype=np.uint8)
        self.encode(pixels, rng.integers(0, text.vocabulary, (count, text.max_tokens)), weights)

    def measure(self, weights: Weights) -> None:
        """Measures what encoding one sample takes. It encodes more and more samples at once, until each thread has one,
        and they take long enough to be timed or are a micro-batch; each size runs twice, because the first run of a
        shape is slower. Raises NotPossible."""
        count, seconds = 1, 0.0
        least = threads() if self._device.kind.is_host else 1
        while count < least or (seconds < TIMED_SECONDS and 2 * count <= max(2, self._micro_batch)):
            count *= 2
            seconds = min(self._seconds(weights, count) for _ in range(2))
        self.seconds_per_sample = seconds / count

    def _seconds(self, weights: Weights, count: int) -> float:
        started = time.perf_counter()
        self.warm_up(weights, count)
        return time.perf_counter() - started

    def _check_activations(self, tensors: Mapping[str, TensorView]) -> None:
        """Compares the activations that the trainer's model and the bundle are made of, if both tell them."""
        view, ours = tensors.get(ACTIVATIONS), self.bundle.manifest.activations
        if view is None or not ours:
            return
        theirs = bytes(view.data[:_MAX_NAMES]).decode("ascii", "replace")
        if set(ours).isdisjoint(theirs.split(",")):
            limit = f"the bundle computes with {', '.join(ours)}; export it with the trainer's activation"
            raise NotPossible("activation of the trainer's model", theirs, limit)

    def _check_canary(self, tensors: Mapping[str, TensorView], weights: Weights) -> None:
        """Compares embeddings of the trainer's samples with the trainer's own, if it sent any."""
        if CANARY + "pixels" not in tensors:
            return
        manifest = self.bundle.manifest
        image, text, count = manifest.image, manifest.text, tensors[CANARY + "pixels"].shape[:1]
        if not count or not 1 <= count[0] <= MAX_CANARY:
            raise NotPossible("canary", f"{list(count)} samples", f"must be 1 to {MAX_CANARY}")
        shapes = {
            "pixels": ("U8", (*count, image.height, image.width, image.channels)),
            "tokens": ("I64", (*count, text.max_tokens)),
            "image": ("F32", (*count, manifest.width)),
            "text": ("F32", (*count, manifest.width)),
        }
        found = {name: _canary_part(tensors.get(CANARY + name), name, *shape) for name, shape in shapes.items()}
        if not 0 <= found["tokens"].min() <= found["tokens"].max() < text.vocabulary:
            raise NotPossible("canary tokens", int(found["tokens"].max()), f"ids must be 0 to {text.vocabulary - 1}")
        ours = self.encode(found["pixels"], found["tokens"], weights)
        cosines, error = {}, 0.0
        for name, mine in (("image", ours.image.cpu()), ("text", ours.text.cpu())):
            theirs = torch.nn.functional.normalize(torch.from_numpy(found[name]))
            cosines[name] = torch.nn.functional.cosine_similarity(mine, theirs).min().item()
            error = max(error, (mine - theirs).abs().max().item())
        least = CANARY_COSINE[manifest.precision]
        self._metrics.canary(error, all(cosine >= least for cosine in cosines.values()))
        for name, cosine in cosines.items():
            if not cosine >= least:
                limit = f"at least {least}: these are not the weights, or not the model, that the trainer used"
                raise NotPossible(f"canary: cosine to the trainer's {name} embedding", f"{cosine:.4f}", limit)

    def _source_shape(self, name: str, parameter: Parameter) -> tuple[int, ...]:
        shape, _ = self._inputs[parameter.input]
        if parameter.resize is None:
            return shape
        try:
            return source_shape(parameter.resize, shape)
        except ValueError as error:
            raise BundleError(f"{self.bundle.path}: parameters.{name}", parameter.resize.kind, str(error)) from error


def _canary_part(view: TensorView | None, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if view is None or (view.dtype, view.shape) != (dtype, shape):
        shown = "missing" if view is None else f"{view.dtype} {list(view.shape)}"
        raise NotPossible(f"canary {name}", shown, f"must be {dtype} {list(shape)}")
    kind = {"U8": np.uint8, "I64": np.int64, "F32": np.float32}[dtype]
    return np.frombuffer(view.data, kind).reshape(shape).copy()


def _checked(name: str, tensors: Mapping[str, TensorView], shape: tuple[Any, ...]) -> TensorView:
    """Returns the tensor of this name if it has this shape. Raises NotPossible."""
    view = tensors.get(name)
    if view is None:
        raise NotPossible(f"parameter {name}", "missing", f"the learner needs it with shape {list(shape)}")
    if view.shape != shape:
        raise NotPossible(f"parameter {name}", list(view.shape), f"the learner needs shape {list(shape)}")
    if view.dtype not in _TORCH:
        raise NotPossible(f"parameter {name}", view.dtype, f"must be one of {', '.join(_TORCH)}")
    return view


def _cast(views: Mapping[str, TensorView], parts: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes each tensor as float32 into its part, and checks that all values are finite. Raises NotPossible."""
    # torch takes writable memory only.
    raw = {name: np.require(np.frombuffer(view.data, np.uint8), requirements="W") for name, view in views.items()}
    values = {name: torch.from_numpy(raw[name]).view(_TORCH[view.dtype]) for name, view in views.items()}
    room = {name: torch.from_numpy(parts[name]) for name in views}
    pieces = [(name, start) for name in views for start in range(0, len(parts[name]), CAST_VALUES)]
    broken: list[str] = []

    def cast(piece: tuple[str, int]) -> None:
        name, start = piece
        some = room[name][start : start + CAST_VALUES].copy_(values[name][start : start + CAST_VALUES])
        if not all(map(math.isfinite, torch.stack(torch.aminmax(some)).tolist())):  # NaN counts as both
            broken.append(name)

    spread(lambda: cast, pieces, torch.device("cpu"))
    if broken:
        raise NotPossible(f"parameter {min(broken)}", "NaN or infinite", "every value must be finite")


def logit_of(logit: Logit, tensors: Mapping[str, TensorView]) -> tuple[float, float]:
    """Returns the logit scale and bias that these parameters hold. Raises NotPossible."""
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
    value = np.empty(1, np.float32)
    _cast({name: _checked(name, tensors, shape)}, {name: value})
    return float(value[0])
