"""Ids as people have them. Python compares them, for numpy takes "a" and "a\\0" for equal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from selector_proto.contract import MAX_ID_BYTES, caption_id

from selector_client.selecting.bad_samples import Id
from selector_client.selecting.columns import as_array, as_list, is_missing, kind_of
from selector_client.selecting.exclusions import Exclusions

_MOST = np.iinfo(np.int64).max


def read_ids(values: Any, exclusions: Exclusions, drawn: Mapping[int, int]) -> list[Id | None]:
    """Returns B integers, or else B texts of 1 to MAX_ID_BYTES bytes; None where there is none that can be sent, and
    the candidate is excluded. An id means one image and one text, and so the id of a candidate that has a list of
    captions ends with "#" and the number of the one that was `drawn`. Raises TypeError or ValueError if the values are
    no ids at all."""
    items = as_list(values)
    if not items and (array := as_array(values)).dtype.kind == "f" and array.ndim == 1:  # a column that has gaps
        items = array.tolist()
    ids = [_one(index, item, exclusions) for index, item in enumerate(items)] if items else _integers(as_array(values))
    if len({type(one) for one in ids if one is not None}) > 1:
        raise TypeError("ids has integers and strings; must be one or the other, for they never meet")
    if drawn:
        ids = [one if one is None else caption_id(one, drawn.get(index)) for index, one in enumerate(ids)]
    for index, one in enumerate(ids):
        if isinstance(one, str) and (size := len(one.encode())) > MAX_ID_BYTES:
            words = f"ids[{index}] has {size} bytes; must have 1 to {MAX_ID_BYTES}, so send a hash of it"
            exclusions.exclude(index, "too_large", ValueError(words))
            ids[index] = None
    return ids


def repeats(ids: Sequence[Id | None], closed: Exclusions) -> list[int]:
    """Returns the candidates of which an earlier one, that is not excluded, has the id."""
    seen: set[Id | None] = set()
    found = []
    for index, one in enumerate(ids):
        if index in closed:
            continue
        if one in seen:
            found.append(index)
        seen.add(one)
    return found


def check_different(ids: Sequence[Id | None], exclusions: Exclusions) -> None:
    """Raises ValueError if one stands twice."""
    if found := repeats(ids, exclusions):
        raise ValueError(f"ids has {ids[found[0]]} more than once; every candidate needs one of its own")


def _one(index: int, item: Any, exclusions: Exclusions) -> Id | None:
    if isinstance(item, float | np.floating) and float(item).is_integer():
        item = int(item)
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return _checked(int(item))
    if is_missing(item) or (isinstance(item, str | bytes) and not item):
        words = f"ids[{index}] is {item!r}; every candidate needs an id, or none has one"
        exclusions.exclude(index, "missing", ValueError(words))
        return None
    if isinstance(item, str | bytes):
        try:
            text = item if isinstance(item, str) else item.decode()
            text.encode()
        except UnicodeError:
            exclusions.exclude(index, "text", ValueError(f"ids[{index}] is not Unicode; must be integers or UTF-8"))
            return None
        return str(text)
    raise TypeError(f"ids[{index}] is {kind_of(item)}; must be integers or strings [B]")


def _integers(numbers: Any) -> list[Id | None]:
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise TypeError(f"ids has dtype {numbers.dtype} and {numbers.ndim} dimensions; must be integers or strings [B]")
    _checked(int(numbers.max(initial=0)))
    return list(numbers.tolist())


def _checked(number: int) -> int:
    if not -_MOST - 1 <= number <= _MOST:
        raise ValueError(f"ids has {number}; must be below 2^63")
    return number
