"""Builds the model that is to be traced: at full resolution, then with its weights, then as small as it is asked
for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from selector_server.encoding.bundle import Interpolation
from selector_server.errors import SetupError
from selector_tools.export.checkpoint import Checkpoint, load
from selector_tools.export.low_resolution import at_resolution, check_filled, drop_patches, nearest
from selector_tools.export.torch_model import TorchModel
from selector_tools.mistakes import in_one_line


@dataclass(frozen=True)
class Architecture:
    """`build` makes the model at an image and a patch size, None for its own. `interpolation` and `antialias` say how
    its library brings position tables to another size; `has_weights` says whether `build` loads weights; `notes` are
    for whoever did not say how pixels are normalised."""

    build: Callable[[int | None, int | None], TorchModel]
    interpolation: Interpolation
    antialias: bool
    has_weights: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """Says how much of an image the towers see; None stands for all that the architecture sees."""

    image_size: int | None = None
    patch_size: int | None = None
    keep_patches: float | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None


def prepared(
    architecture: Architecture, look: Look, weights: Checkpoint | None, seed: int, say: Callable[[str], None]
) -> TorchModel:
    """Builds and loads the model; `say` is told each step. Raises SetupError, or BundleError for a resolution that the
    model cannot have."""

    def built(image_size: int | None, patch_size: int | None) -> TorchModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return architecture.build(image_size, patch_size)

    say("building the model")
    full = built(None, None)
    if weights is not None:
        say(f"loading {weights.place}")
        if note := load(full.module, weights):
            say(note)
    elif not architecture.has_weights:
        say(f"random weights (seed {seed})")
    _check_embeddings(full)
    if look.keep_patches is not None:
        return drop_patches(full, look.keep_patches)
    if _as_it_is(full, look):
        return full
    if look.patch_size is not None and full.patch is None:
        limit = f"{full.name} has no patches; leave it out, --image-size alone makes it look at less"
        raise SetupError("--patch-size", look.patch_size, limit)
    if (patch := pair(look.patch_size) if look.patch_size else full.patch) is not None:
        check_filled(pair(look.image_size or (full.image.height, full.image.width)), patch)
    say(f"building it again at {_asked(look)}")
    low = built(look.image_size, look.patch_size)
    if low.grid is not None and 0 in low.grid:
        least = (low.patch or low.stride or (0,))[0]
        raise SetupError(
            "--image-size", look.image_size, f"must be at least {least}, one cell of the tower's last grid"
        )
    interpolation = look.interpolation or architecture.interpolation
    antialias = architecture.antialias if look.antialias is None else look.antialias
    low = at_resolution(full, low, interpolation, antialias)
    _check_embeddings(low, f" at {_asked(look)}")
    if low.stride is not None and (side := low.image.height) % low.stride[0]:
        cell = low.stride[0]
        say(f"note: {side} px are no multiple of its last grid's cell, {cell} px, so edges count less")
    return low


def pair(size: Any) -> tuple[int, int]:
    """Returns the height and width of a size that a library gives as a pair, or as one number for both."""
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(height), int(width)


def _as_it_is(full: TorchModel, look: Look) -> bool:
    sizes, patch = (full.image.height, full.image.width), full.patch
    return look.image_size in (None, *_both(sizes)) and look.patch_size in (None, *_both(patch or ()))


def _both(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the side of a square, and nothing for another rectangle."""
    return sides[:1] if len(set(sides)) == 1 else ()


def _asked(look: Look) -> str:
    parts = (("image", look.image_size), ("patch", look.patch_size))
    return ", ".join(f"{name} {size}" for name, size in parts if size is not None)


def _check_embeddings(model: TorchModel, size: str = "") -> None:
    """Runs both towers once: what is wrong in a model shows here better than in a trace. `size` is what was asked for,
    where that is not the model's own. Raises SetupError."""
    image, text, shapes = model.image, model.text, []
    samples = {
        "image": (model.encode_image, torch.zeros((1, image.channels, image.height, image.width))),
        "text": (model.encode_text, torch.zeros((1, text.max_tokens), dtype=torch.int64)),
    }
    module = model.frozen(torch.float32)
    for tower, (encode, sample) in samples.items():
        try:
            with torch.inference_mode():
                shapes.append(list(encode(module, sample).shape))
        except Exception as error:  # whatever a model raises
            reason = f"it raises {in_one_line(error, kind=True)}"
            if size and model.stride is not None:
                reason += f"; its last grid has cells of {model.stride[0]} px: {nearest(image.height, model.stride[0])}"
            raise SetupError(f"{tower} tower of {model.name}{size}", "broken", reason) from error
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        limit = "images and texts must come to embeddings [B, D] of one width"
        raise SetupError(f"embeddings of {model.name}", f"{shapes[0]} and {shapes[1]}", limit)
