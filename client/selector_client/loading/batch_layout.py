"""The layouts in which data loaders give batches: what a selector is shown of them, how rows are taken out of them, and
how samples are put together."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np

from selector_client.selecting.candidates import ModelEmbeddings
from selector_client.selecting.columns import as_array, as_list, as_rows, is_missing

# Where samples have their images and their texts: names of columns, and the endings that name a sample's files in
# WebDataset, which may follow other words ("image.jpg"). The first that there is counts.
_IMAGES = ("images", "image", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "pixel_values")
_TEXTS = ("texts", "text", "captions", "caption", "txt", "input_ids")


def default_view(super_batch: Any) -> Mapping[str, Any]:
    """Returns images, texts and, if there are any, ids: of a mapping of columns, of a tuple or list whose first two
    entries are columns, or of a list of samples, which are mappings or tuples. A mapping of columns may also have what
    the reference makes of them: "reference", a mapping of what ModelEmbeddings has. So it is with "tags", if each
    candidate has one. Raises TypeError for anything else."""
    if _are_samples(super_batch):
        found = {"images": _entries(super_batch, 0, _IMAGES), "texts": _entries(super_batch, 1, _TEXTS)}
        if all(isinstance(sample, Mapping) and "ids" in sample for sample in super_batch):
            found["ids"] = [sample["ids"] for sample in super_batch]
        if all(isinstance(sample, Mapping) for sample in super_batch):
            found |= _tags([sample.get("tags") for sample in super_batch], len(super_batch))
        if any(value is not None for value in found["images"]) and any(value is not None for value in found["texts"]):
            return found
    elif isinstance(super_batch, Mapping):
        images, texts = _name(super_batch, _IMAGES), _name(super_batch, _TEXTS)
        if images is not None and texts is not None:
            found = {"images": super_batch[images], "texts": super_batch[texts]}
            found |= {"ids": super_batch["ids"]} if "ids" in super_batch else {}
            found |= _tags(super_batch.get("tags"), _counts(super_batch[images]))
            return found | ({"reference": _reference(super_batch)} if "reference" in super_batch else {})
    elif isinstance(super_batch, tuple | list) and len(super_batch) > 1:
        return {"images": super_batch[0], "texts": super_batch[1]}
    keys = f", which has {', '.join(map(str, super_batch))}" if isinstance(super_batch, Mapping) else ""
    kind = type(super_batch).__name__
    raise TypeError(f"cannot find images and texts in a {kind}; give SelectingLoader a view{keys}")


def default_take(super_batch: Any, indices: Any, size: int) -> Any:
    """Returns the rows `indices` of everything in a mapping, tuple or list that has `size` entries, one for each
    candidate, and anything else as it is. Of a list of samples it returns a list of the picked ones."""
    if _are_samples(super_batch):
        return [super_batch[index] for index in indices]
    if isinstance(super_batch, list):  # torch's DataLoader makes a list of pairs
        return [_rows(part, indices, size) for part in super_batch]
    if isinstance(super_batch, tuple):
        return _as_tuple(super_batch, [_rows(part, indices, size) for part in super_batch])
    return _rows(super_batch, indices, size)


def with_captions(super_batch: Any, numbers: Mapping[int, int]) -> Any:
    """Returns a super-batch that has, in the place of a candidate's list of captions, the caption of that number.
    `numbers` has it by the candidate's index. What has no captions where `default_view` finds them stays as it is."""
    if _are_samples(super_batch):
        return [with_caption(sample, numbers.get(index)) for index, sample in enumerate(super_batch)]
    if isinstance(super_batch, Mapping) and (name := _name(super_batch, _TEXTS)) is not None:
        return {**super_batch, name: _drawn(super_batch[name], numbers)}
    if isinstance(super_batch, tuple | list) and len(super_batch) > 1:
        parts = [*super_batch[:1], _drawn(super_batch[1], numbers), *super_batch[2:]]
        return parts if isinstance(super_batch, list) else _as_tuple(super_batch, parts)
    return super_batch


def with_caption(sample: Any, number: int | None) -> Any:
    """Returns one sample, a mapping or a tuple, with the caption of that number in the place of its list of them."""
    if number is None:
        return sample
    if isinstance(sample, Mapping) and (name := _name(sample, _TEXTS)) is not None:
        return {**sample, name: _caption(sample[name], number)}
    if isinstance(sample, tuple | list) and len(sample) > 1:
        parts = [*sample[:1], _caption(sample[1], number), *sample[2:]]
        return parts if isinstance(sample, list) else _as_tuple(sample, parts)
    return sample


def column_of(super_batch: Any, name: str | int) -> Any:
    """Returns what samples have under a name, or at a position in tuples and lists: a column, or None if no sample has
    it."""
    if _are_samples(super_batch):
        column: Any = [_part(sample, name) for sample in super_batch]
    else:
        column = _part(super_batch, name)
    rows = as_rows(column)
    return None if rows is not None and all(map(is_missing, rows)) else column


def _part(whole: Any, name: str | int) -> Any:
    if isinstance(whole, Mapping):
        return whole.get(name)
    return whole[name] if isinstance(name, int) and name < len(whole) else None


def _reference(super_batch: Mapping[str, Any]) -> Any:
    given = super_batch["reference"]
    try:
        return ModelEmbeddings(**given) if isinstance(given, Mapping) else given
    except TypeError as error:
        names = ", ".join(field.name for field in fields(ModelEmbeddings))
        raise TypeError(f"reference of a super-batch has {', '.join(map(str, given))}; it may have {names}") from error


def _tags(column: Any, size: int | None) -> dict[str, Any]:
    """Returns the tags if each candidate has one, or none; a column of that name may well be something else."""
    if column is None or size is None or _counts(column) != size or len(getattr(column, "shape", ())) > 1:
        return {}
    entries = as_list(column)
    if entries is None:
        return {"tags": column} if as_array(column).dtype.kind in "iu" else {}
    plain = all(entry is None or isinstance(entry, str | int | np.integer) for entry in entries)
    return {"tags": column} if plain and any(entry is not None for entry in entries) else {}


def _are_samples(super_batch: Any) -> bool:
    """Whether this is a list of samples, and not one of columns: there are more of them than each has parts."""
    if not isinstance(super_batch, list) or not super_batch:
        return False
    if all(isinstance(sample, Mapping) for sample in super_batch):
        return True
    return all(isinstance(sample, tuple) and 1 < len(sample) < len(super_batch) for sample in super_batch)


def _entries(samples: Sequence[Any], position: int, names: Sequence[str]) -> list[Any]:
    """Returns one part of each sample, None where it is missing."""
    found = []
    for sample in samples:
        if isinstance(sample, Mapping):
            name = _name(sample, names)
            found.append(None if name is None else sample[name])
        else:
            found.append(sample[position])
    return found


def _name(columns: Mapping[Any, Any], names: Sequence[str]) -> Any:
    """Returns under which of these names a mapping has something, or None."""
    for name in names:
        if name in columns:
            return name
    endings = {str(key).rpartition(".")[2].lower(): key for key in columns if "." in str(key)}
    return next((endings[name] for name in names if name in endings), None)


def _rows(part: Any, indices: Any, size: int) -> Any:
    if isinstance(part, Mapping):
        return {key: _rows(value, indices, size) for key, value in part.items()}
    if _counts(part) == size:
        return _picked(part, indices)
    if isinstance(part, tuple | list):
        parts = [_rows(value, indices, size) for value in part]
        return parts if isinstance(part, list) else _as_tuple(part, parts)
    return part


def _counts(part: Any) -> int | None:
    """Returns how many entries a column has, or None if this is no column."""
    if isinstance(part, str | bytes):
        return None
    if hasattr(part, "shape"):
        return part.shape[0] if part.shape else None
    return len(part) if isinstance(part, Sequence) or hasattr(part, "to_pylist") else None


def _picked(column: Any, indices: Any) -> Any:
    if hasattr(column, "iloc"):  # pandas, whose own index may be in any order
        return column.iloc[indices]
    if hasattr(column, "to_pylist"):  # Arrow
        return column.take(indices)
    return column[indices] if hasattr(column, "shape") else [column[index] for index in indices]


def _as_tuple(like: tuple[Any, ...], parts: list[Any]) -> Any:
    return tuple(parts) if type(like) is tuple else type(like)(*parts)  # a named tuple


def _drawn(captions: Any, numbers: Mapping[int, int]) -> Any:
    if not hasattr(captions, "__len__") or not hasattr(captions, "__getitem__"):
        return captions
    items = captions.iloc if hasattr(captions, "iloc") else captions
    return [_caption(items[index], numbers.get(index)) for index in range(len(captions))]


def _caption(captions: Any, number: int | None) -> Any:
    several = isinstance(captions, list | tuple | np.ndarray) and number is not None and number < len(captions)
    return captions[number] if several else captions


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
