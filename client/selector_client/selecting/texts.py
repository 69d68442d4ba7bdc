"""Captions and token ids as people have them: what can be served is read, what cannot is excluded with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.selecting.columns import Terms, as_array, as_list, is_missing, kind_of
from selector_client.selecting.exclusions import Exclusions


@dataclass(frozen=True)
class Texts:
    """Token ids, int32 or int64 [B, T], or else `strings`, B texts in UTF-8. `drawn` says which caption stands for a
    candidate that has several, by its index."""

    tokens: NDArray[Any] | None
    strings: Sequence[bytes]
    drawn: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.strings) if self.tokens is None else len(self.tokens)


def read_texts(values: Any, exclusions: Exclusions, terms: Terms) -> Texts:
    """Reads B texts, or B rows of token ids. Raises TypeError or ValueError if they are none of both, or are token ids
    of different lengths."""
    if hasattr(values, "keys") and "input_ids" in values:  # what tokenizers of transformers return
        values = values["input_ids"]
    items = as_list(values)
    if not items or not _are_captions(items):
        return Texts(_tokens(values if items is None else items, exclusions), [], {})
    strings, drawn = [], {}
    shares = np.random.default_rng([terms.seed, 1]).random(len(items))
    for index, given in enumerate(items):
        item = given
        if (captions := _captions(item)) or _is_nothing(item):
            usable = [number for number, caption in enumerate(captions) if not is_missing(caption)]
            item = None
            if usable:
                drawn[index] = usable[int(shares[index] * len(usable))]
                item = captions[drawn[index]]
        strings.append(_string(item, index, exclusions, terms.sidecar.max_text_bytes))
    return Texts(None, strings, drawn)


def _string(item: Any, index: int, exclusions: Exclusions, most: int | None) -> bytes:
    """Returns the text in UTF-8, which is empty if the candidate is excluded."""
    name = f"texts[{index}]"
    if is_missing(item):
        exclusions.exclude(index, "missing", TypeError(f"{name} is {item}; every candidate needs a text"))
        return b""
    if isinstance(item, Number):
        item = str(item)
    if isinstance(item, str):
        try:
            text = item.encode()
        except UnicodeEncodeError:
            try:  # two surrogates that are one character, as JSON escapes it
                text = item.encode("utf-16", "surrogatepass").decode("utf-16").encode()
            except UnicodeError:
                limit = "has half a character (a lone surrogate); read its file with errors='replace'"
                exclusions.exclude(index, "text", ValueError(f"{name} {limit}"))
                return b""
    elif isinstance(item, bytes | bytearray):
        text = bytes(item)
        try:
            text.decode()
        except UnicodeDecodeError:
            limit = "is not UTF-8; decode it yourself, as by .decode('utf-8', 'replace')"
            exclusions.exclude(index, "text", ValueError(f"{name} {limit}"))
            return b""
    else:
        limit = "must be a text like the others, or a list of texts"
        exclusions.exclude(index, "format", TypeError(f"{name} is {kind_of(item)}; {limit}"))
        return b""
    if most is not None and len(text) > most:
        limit = f"the sidecar takes {most} (max_text_bytes)"
        exclusions.exclude(index, "too_large", ValueError(f"{name} has {len(text)} bytes; {limit}"))
        return b""
    return text


def _tokens(values: Any, exclusions: Exclusions) -> NDArray[Any]:
    """Returns token ids int32 or int64 [B, T], zeros where they are missing."""
    if isinstance(values, list):
        values = _full(values, exclusions)
    array = as_array(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"texts has dtype {array.dtype}; must be token ids or strings")
    array = array if array.dtype in (np.int32, np.int64) else array.astype(np.int64)
    if array.ndim == 3 and array.shape[1] == 1:  # tokenizers give [1, T] for each text
        array = array[:, 0]
    if array.ndim == 1 and len(array):
        limit = "must be token ids [B, T] or strings; if these numbers are captions, send str() of each"
        raise ValueError(f"texts has shape {list(array.shape)}; {limit}")
    if array.ndim != 2 or not len(array):
        raise ValueError(f"texts has shape {list(array.shape)}; must have 2 dimensions and at least one row")
    return array


def _full(items: list[Any], exclusions: Exclusions) -> Any:
    """Returns rows of token ids with a row of zeros for each that is missing. Rows of one length they must be."""
    rows = [None if _is_nothing(item) else as_array(item) for item in items]
    given = [(index, row) for index, row in enumerate(rows) if row is not None]
    if not given:
        return items
    first, sample = given[0]
    for index, row in given:
        if row.shape != sample.shape:
            sizes = f"has shape {list(row.shape)}, texts[{first}] {list(sample.shape)}"
            raise ValueError(f"texts[{index}] {sizes}; pad token ids to one length (padding=True of most tokenizers)")
    for index in range(len(rows)):
        if rows[index] is None:
            exclusions.exclude(index, "missing", TypeError(f"texts[{index}] is missing; every candidate needs a text"))
    blank = np.zeros_like(sample)
    return np.stack([blank if row is None else row for row in rows])


def _are_captions(items: Sequence[Any]) -> bool:
    """Whether this is a column of captions, as its first entry tells that is neither missing nor a number; so is one of
    nothing but missing ones."""
    for item in items:
        if _is_text(item) or _captions(item):
            return True
        if not _is_nothing(item) and not isinstance(item, Number):
            return False
    return all(_is_nothing(item) for item in items)


def _is_text(item: Any) -> bool:
    return isinstance(item, str | bytes | bytearray)


def _captions(item: Any) -> list[Any]:
    """Returns the captions of one candidate if it has a list of them, and else an empty list."""
    items = None if _is_text(item) or isinstance(item, Mapping) else as_list(item)
    return items if items and any(_is_text(one) for one in items) else []


def _is_nothing(item: Any) -> bool:
    """Whether there is no text: a missing one, or a list of none."""
    if is_missing(item):
        return True
    items = None if _is_text(item) else as_list(item)
    return items is not None and all(is_missing(one) for one in items)
