"""Applies a bundle's resizes: they bring a trainer's full-resolution parameters to the shapes that a low-resolution
graph takes.

The maps are linear (FlexiViT; JEST section 3.4, "Flexi-JEST"), so that they cost one product for each version of the
weights, and the trainer publishes its state_dict as it is.
"""

import torch
from selector_proto.resize import patch_matrix, resize_matrix
from torch import Tensor

from selector_server.encoding.bundle import Resize


def source_shape(resize: Resize, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the trainer's parameter, given the graph input's. Raises ValueError if that shape does not
    fit the map."""
    (high, wide), (to_high, to_wide) = resize.size, resize.to
    match resize.kind:
        case "patch":
            if len(shape) == 4 and shape[2:] == resize.to:
                return (*shape[:2], high, wide)
        case "patch-linear":
            if len(shape) == 2 and shape[1] % (to_high * to_wide) == 0:
                return (shape[0], shape[1] // (to_high * to_wide) * high * wide)
        case "positions":
            if len(shape) >= 2 and shape[-2] == resize.prefix + to_high * to_wide:
                return (*shape[:-2], resize.prefix + high * wide, shape[-1])
    raise ValueError(
        f"a graph input of shape {list(shape)} cannot come from {resize.kind} {resize.size} -> {resize.to}"
    )


def resized(resize: Resize, value: Tensor) -> Tensor:
    """Returns the parameter at the graph's resolution, float32. `value` is a float tensor of the shape `source_shape`
    tells."""
    value = value.to(torch.float64)
    to = resize.to
    if resize.kind == "positions":
        matrix = torch.tensor(resize_matrix(resize.size, to, resize.interpolation, resize.antialias))
        kept, grid = value[..., : resize.prefix, :], value[..., resize.prefix :, :]
        return torch.cat([kept, matrix @ grid], dim=-2).to(torch.float32)
    matrix = torch.tensor(patch_matrix(resize.size, to, resize.interpolation, resize.antialias))
    if resize.kind == "patch":
        return (value.flatten(2) @ matrix.T).reshape(*value.shape[:2], *to).to(torch.float32)
    patches = value.reshape(len(value), matrix.shape[1], -1)  # pixels by row, their channels innermost
    return torch.einsum("qp,opc->oqc", matrix, patches).flatten(1).to(torch.float32)
