"""Tags as people have them, for those who look at slices of a stream. No selection depends on them."""

from typing import Any

import numpy as np
from selector_proto.contract import MAX_TAG_BYTES

from selector_client.selecting.columns import as_array, as_list, is_missing


def read_tags(values: Any, size: int) -> list[bytes]:
    """Returns B texts in UTF-8, of at most MAX_TAG_BYTES, empty where a tag is missing. Integers become texts, too:
    older sidecars refuse requests that have them as integers. Raises ValueError for another number of them."""
    items = as_list(values)
    if items is None:
        array = as_array(values)
        if array.ndim != 1:
            raise ValueError(f"tags has shape {list(array.shape)}; must be integers or strings [B]")
        items = array.tolist()
    if len(items) != size:
        raise ValueError(f"tags has {len(items)} entries; there are {size} candidates")
    return [_one(item) for item in items]


def _one(item: Any) -> bytes:
    if is_missing(item):
        return b""
    if isinstance(item, float | np.floating) and float(item).is_integer():  # a column of integers that has gaps
        item = int(item)
    text = item if isinstance(item, bytes | bytearray) else str(item).encode(errors="replace")
    return bytes(text) if len(text) <= MAX_TAG_BYTES else bytes(text[:MAX_TAG_BYTES]).decode(errors="ignore").encode()
