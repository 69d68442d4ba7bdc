"""Super-batches in the forms that data loaders give them: what a selector is shown, and the rows that it picked."""

from collections.abc import Mapping, Sequence
from typing import Any


def default_view(super_batch: Any) -> Mapping[str, Any]:
    """images, texts and perhaps ids of a mapping, or the first two entries of a tuple or list."""
    match super_batch:
        case {"images": images, "texts": texts, "ids": ids}:
            return {"images": images, "texts": texts, "ids": ids}
        case {"images": images, "texts": texts}:
            return {"images": images, "texts": texts}
        case (images, texts, *_):
            return {"images": images, "texts": texts}
    raise TypeError(f"cannot find images and texts in a {type(super_batch).__name__}; give SelectingLoader a view")


def default_take(super_batch: Any, indices: Any) -> Any:
    """The rows `indices` of everything in a mapping, tuple or list; a list inside those has one entry per row."""
    if isinstance(super_batch, list):  # what torch's DataLoader makes of pairs
        return [_rows(part, indices) for part in super_batch]
    return _rows(super_batch, indices)


def _rows(part: Any, indices: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: _rows(value, indices) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_rows(value, indices) for value in part)
    if isinstance(part, Sequence):
        return [part[i] for i in indices]
    return part[indices]
