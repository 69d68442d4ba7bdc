"""The layouts in which data loaders give batches: what a selector is shown of them, how rows are taken out of them, and
how samples are put together."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np


def default_view(super_batch: Any) -> Mapping[str, Any]:
    """Returns images, texts and, if there are any, ids of a mapping, or the first two entries of a tuple or list.
    Raises TypeError for anything else."""
    match super_batch:
        case {"images": images, "texts": texts, "ids": ids}:
            return {"images": images, "texts": texts, "ids": ids}
        case {"images": images, "texts": texts}:
            return {"images": images, "texts": texts}
        case (images, texts, *_):
            return {"images": images, "texts": texts}
    raise TypeError(f"cannot find images and texts in a {type(super_batch).__name__}; give SelectingLoader a view")


def default_take(super_batch: Any, indices: Any) -> Any:
    """Returns the rows `indices` of everything in a mapping, tuple or list. A list inside those has one entry per
    row."""
    if isinstance(super_batch, list):  # torch's DataLoader makes a list of pairs
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


def collate(samples: Sequence[Any]) -> Any:
    """Puts samples together to a batch, in torch's own way if the trainer uses torch. Otherwise arrays are stacked,
    mappings, tuples and lists keep their layout, and strings become lists."""
    if "torch" in sys.modules:
        return import_module("torch.utils.data").default_collate(list(samples))
    return _stacked(samples)


def _stacked(samples: Sequence[Any]) -> Any:
    first = samples[0]
    if isinstance(first, dict):
        return {key: _stacked([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_stacked(part) for part in zip(*samples, strict=True))
    if isinstance(first, str | bytes):
        return list(samples)
    return np.stack([np.asarray(sample) for sample in samples])
