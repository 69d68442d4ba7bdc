"""Columns of samples as people have them (lists, arrays of objects, pandas and Arrow columns), and what is known of the
sidecar that will read them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from selector_proto.v1 import selector_pb2 as pb


@dataclass(frozen=True)
class Advertised:
    """What a sidecar says that it takes; None where it was not asked yet. `pixels` is the height, width and channels
    that all its models take, and is empty if they differ."""

    max_image_bytes: int | None = None
    max_image_pixels: int | None = None
    max_text_bytes: int | None = None
    pixels: tuple[int, ...] | None = None

    @staticmethod
    def of(info: pb.GetServerInfoResponse) -> "Advertised":
        """Reads what GetServerInfo returns."""
        models = [model for name in ("learner", "reference") if info.HasField(name) for model in [getattr(info, name)]]
        shapes = {(model.image.height, model.image.width, model.image.channels) for model in models}
        limits = info.limits
        return Advertised(
            limits.max_image_bytes or None,
            limits.max_image_pixels or None,
            limits.max_text_bytes or None,
            (shapes.pop() if len(shapes) == 1 else ()) if shapes else None,
        )


@dataclass(frozen=True)
class Terms:
    """How samples are read: `strict` raises for the first that cannot be used, `seed` draws one of several captions,
    and `sidecar` says what is too large."""

    strict: bool = True
    seed: int = 0
    sidecar: Advertised = field(default_factory=Advertised)


def as_list(values: Any) -> list[Any] | None:
    """Returns a column as a list, or None if it is no column of objects but an array of numbers, or no column."""
    if isinstance(values, str | bytes | bytearray):
        return None
    if isinstance(values, np.ndarray):
        return values.tolist() if values.dtype.kind in "OSUT" and values.ndim else None
    for name in ("to_pylist", "to_numpy"):  # Arrow, then pandas and polars, none of which has to be installed
        if hasattr(values, name):
            converted = getattr(values, name)()
            return converted if isinstance(converted, list) else as_list(converted)
    return list(values) if isinstance(values, Sequence) else None


def as_rows(values: Any) -> list[Any] | None:
    """Returns a column of rows of numbers as a list, or None if it is one array of numbers. Arrow's rows become arrays,
    which is faster than lists of numbers."""
    if hasattr(values, "to_pylist"):
        return list(values.to_numpy(zero_copy_only=False))
    return as_list(values)


def as_array(values: Any) -> NDArray[Any]:
    """Returns numbers as numpy's array. Tensors may lie on a device."""
    if hasattr(values, "detach"):  # a tensor of torch
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    elif hasattr(values, "to_numpy"):
        values = values.to_numpy()
    return np.asarray(values)


def is_missing(value: Any) -> bool:
    """Whether this is None, or one of the values that mean the same in tables: NaN, pandas.NA, NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def kind_of(value: Any) -> str:
    """Returns what a value is, in two words."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeio" else f"a {name}"
