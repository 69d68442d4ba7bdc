"""There are two ways to look at less of an image: a smaller grid (Flexi-JEST), or fewer patches of the same grid.

A grid of another size is for trainers that train at it too: the learner's weights are mapped linearly to it, whenever
they arrive, or stay as they are where the tower only convolves. Dropping patches keeps every patch's size and position,
and suits trainers that do not.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from selector_server.encoding.bundle import Interpolation, Resize
from selector_server.encoding.resizing import resized
from selector_server.errors import BundleError
from selector_tools.export.torch_model import TorchModel

# The kept patches are spread evenly: the fractional parts of x * A + y * B over a grid are a rank-1 lattice. A and B
# come from the plastic number, which does in two dimensions what the golden ratio does in one.
_LATTICE = (0.7548776662466927, 0.5698402909980532)


def at_resolution(full: TorchModel, low: TorchModel, interpolation: Interpolation, antialias: bool) -> TorchModel:
    """Returns `low` (the same architecture, built for another image or patch size) with the weights of `full`, and
    with the linear maps that bring them there. `low.module` is filled in place. Raises BundleError for a parameter that
    differs in another way."""
    resizes, state = {}, {}
    for name, target in low.module.state_dict().items():
        value = full.state.get(name)
        if value is None:
            raise BundleError(f"parameter {name}", "missing", "the full-resolution model must have it")
        if value.shape == target.shape or not target.is_floating_point():
            state[name] = value if value.shape == target.shape else target
            continue
        resizes[name] = resize = _resize(name, value, target, full, low, interpolation, antialias)
        state[name] = resized(resize, value.float())
    low.module.load_state_dict(state)
    return replace(low, state=full.state, resizes=resizes)


def _resize(
    name: str,
    value: Tensor,
    target: Tensor,
    full: TorchModel,
    low: TorchModel,
    interpolation: Interpolation,
    antialias: bool,
) -> Resize:
    """Finds the map from `value` to the shape of `target`. Raises BundleError if there is none."""
    old, new = tuple(value.shape), tuple(target.shape)

    def resize(
        kind: Literal["patch", "patch-linear", "positions"], size: tuple[int, int], to: tuple[int, int], prefix: int = 0
    ) -> Resize:
        return Resize(kind=kind, size=size, to=to, prefix=prefix, interpolation=interpolation, antialias=antialias)

    if full.patch is not None and low.patch is not None:
        if len(old) == len(new) == 4 and (old[2:], new[2:]) == (full.patch, low.patch) and old[:2] == new[:2]:
            return resize("patch", full.patch, low.patch)
        pixels = [patch[0] * patch[1] * full.image.channels for patch in (full.patch, low.patch)]
        # A table of positions may be as wide as a patch has pixels (ViT-B/16), but its rows change.
        if len(old) == len(new) == 2 and old[0] == new[0] and [old[1], new[1]] == pixels:
            return resize("patch-linear", full.patch, low.patch)
    size, to = full.grid, low.grid
    if size is not None and to is not None and len(old) >= 2:
        prefix = old[-2] - size[0] * size[1]
        if prefix >= 0 and new == (*old[:-2], prefix + to[0] * to[1], old[-1]):
            return resize("positions", size, to, prefix)
    limit = f"no linear map leads from {list(old)} at full resolution to it"
    raise BundleError(f"parameter {name}", list(new), limit)


def check_filled(image: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raises BundleError unless patches fill the image: the rest would be cut without a word."""
    for side, cell in zip(image, patch, strict=True):
        if side % cell:
            limit = f"must be a multiple of the patch size, {cell}: {nearest(side, cell)}"
            raise BundleError("image size", side, limit)


def nearest(side: int, cell: int) -> str:
    """Names the sizes next to `side` that are whole multiples of `cell`."""
    below = side // cell * cell
    return f"{below} or {below + cell}" if below else str(cell)


def drop_patches(model: TorchModel, keep: float) -> TorchModel:
    """Returns `model` looking at a share `keep` of its patches, spread evenly and the same for every image; each keeps
    its position. `model.module` gets a hook. Raises BundleError."""
    if model.patch is None or not model.tokens_at:
        raise BundleError("keep patches", keep, "the image tower has no patches that could be dropped")
    check_filled((model.image.height, model.image.width), model.patch)
    assert model.grid is not None
    high, wide = model.grid
    count = round(keep * high * wide)
    if not 0 < keep <= 1 or count < 1:
        raise BundleError("keep patches", keep, "must leave at least one patch and at most all")
    order = sorted(range(high * wide), key=lambda cell: _spread(cell // wide, cell % wide))
    kept = torch.tensor(sorted(order[:count]))

    def choose(_module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor:
        prefix = tokens.shape[1] - high * wide
        return torch.cat([tokens[:, :prefix], tokens.index_select(1, kept.to(tokens.device) + prefix)], dim=1)

    model.module.get_submodule(model.tokens_at).register_forward_hook(choose)
    return replace(model, patches_kept=count / (high * wide))


def _spread(row: int, column: int) -> float:
    return (row * _LATTICE[0] + column * _LATTICE[1]) % 1.0
