"""What the reference makes of samples, as data sets keep it: a row for each sample, of which some are missing or cannot
be used."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.selecting.columns import as_array, as_rows, is_missing, kind_of
from selector_client.selecting.exclusions import Exclusions


def read_rows(values: Any, field: str, width: int | None, exclusions: Exclusions) -> Any:
    """Returns embeddings as one array [B, D]. If they are that already, it is the very same, and the sidecar looks at
    its numbers. Otherwise they are a column of rows: a row that is missing, no row of numbers, of another width or not
    finite excludes its candidate, and zeros stand in its place. D is `width`, or else what most rows have.

    Raises ValueError if they are no column at all."""
    items = as_rows(values)
    if items is None:
        if np.ndim(values) == 2 and width in (None, np.shape(values)[1]):
            return values
        if np.ndim(values) < 2:
            raise ValueError(f"{field} has shape {list(np.shape(values))}; must be [B, D], or a column of B rows")
        items = list(as_array(values))
    rows = [_row(item, f"{field}[{index}]", index, exclusions) for index, item in enumerate(items)]
    counts = Counter(row.size for row in rows if row is not None)
    width = width or (counts.most_common(1)[0][0] if counts else 1)
    dtype = np.result_type(*(row.dtype for row in rows if row is not None), np.float16)
    together = np.zeros((len(rows), width), dtype)
    for index, row in enumerate(rows):
        if row is None:
            continue
        if row.size == width:
            together[index] = row
        else:
            words = f"{field}[{index}] has {row.size} values; the reference's width is {width}"
            exclusions.exclude(index, "format", ValueError(words))
    return together


def _row(item: Any, name: str, index: int, exclusions: Exclusions) -> NDArray[Any] | None:
    """Returns one row of finite float32 or float16 numbers, or None if the candidate is excluded."""
    if is_missing(item):
        words = f"{name} is {item}; every sample needs what the reference makes of it"
        exclusions.exclude(index, "missing", ValueError(words))
        return None
    if isinstance(item, bytes | bytearray):
        words = f"{name} has {len(item)} bytes that are no .npy file of numbers"
        exclusions.exclude(index, "unreadable", ValueError(words))
        return None
    try:
        row = as_array(item)
        row = row.astype(np.float32) if row.dtype.kind == "f" and row.dtype.itemsize > 4 else row
    except (ValueError, TypeError):  # rows within rows of different lengths
        row = np.empty(0, object)
    if row.ndim != 1 or row.dtype.kind != "f" or not row.size:
        what = f"{row.dtype} {list(row.shape)}" if row.dtype.kind != "O" else kind_of(item)
        exclusions.exclude(index, "format", ValueError(f"{name} is {what}; must be floating-point numbers [D]"))
        return None
    if not np.isfinite(row).all():
        wrong = int(np.isfinite(row).argmin())
        exclusions.exclude(index, "value", ValueError(f"{name} is {row[wrong]} at {wrong}; every value must be finite"))
        return None
    return row
