"""Pictures as people have them: files, arrays, tensors and PIL images. What can be served is read, what cannot is
excluded with its reason."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_client.selecting.columns import Terms, as_array, as_list, is_missing, kind_of
from selector_client.selecting.exclusions import Exclusions

Pixels = NDArray[np.uint8]
# How many channels a picture may have, by which channels first are told from channels last.
_CHANNELS = (1, 3, 4)
# The colour types of PNG, by the number of channels.
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
# Of Pillow's modes these are in a PNG as they are.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
# What to send instead of normalised numbers.
INSTEAD = "send what they were before they were normalised: uint8 pixels, PIL images, or the files' bytes"


def read_images(values: Any, exclusions: Exclusions, terms: Terms) -> Pixels | list[bytes]:
    """Returns uint8 [B, H, W, C], or B encoded files, which are empty where a candidate is excluded. Raises TypeError
    or ValueError if the values are no pictures at all."""
    items = as_list(values)
    if not items:
        return _batch(as_array(values))
    one = _Reader(exclusions, terms)
    for index, item in enumerate(items):
        one.read(index, item)
    return one.form(len(items))


def png(pixels: Pixels) -> bytes:
    """Returns uint8 [H, W, C], of 1 to 4 channels, as a PNG file."""
    high, wide, channels = pixels.shape
    # Each row begins with the number of its filter, 2: its values are the differences to the row above.
    rows = np.full((high, 1 + wide * channels), 2, np.uint8)
    rows[:, 1:] = flat = pixels.reshape(high, -1)
    rows[1:, 1:] -= flat[:-1]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", wide, high, 8, _COLOURS[channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class _Reader:
    """Reads a list of pictures one by one, and then decides in which form all of them travel."""

    def __init__(self, exclusions: Exclusions, terms: Terms) -> None:
        self._exclusions, self._sidecar = exclusions, terms.sidecar
        self._files: dict[int, bytes] = {}
        self._arrays: dict[int, Pixels] = {}
        self._floats: dict[int, NDArray[Any]] = {}
        self._pictures = False  # whether any is a PIL image

    def read(self, index: int, item: Any) -> None:
        """Reads one picture."""
        if isinstance(item, bytes):  # what most pictures are
            self._file(index, item)
            return
        if isinstance(item, Mapping) and "bytes" in item:  # a column of Hugging Face datasets that is not decoded
            item = item["bytes"]
        elif hasattr(item, "getvalue"):
            item = item.getvalue()
        if is_missing(item):
            self._bad(index, "missing", TypeError(f"images[{index}] is {item}; every candidate needs an image"))
        elif isinstance(item, bytes | bytearray | memoryview):
            self._file(index, bytes(item))
        elif isinstance(item, str) or hasattr(item, "__fspath__"):
            limit = "must be the file's bytes (Path(...).read_bytes()), a PIL image or a uint8 array"
            self._bad(index, "format", TypeError(f"images[{index}] is {kind_of(item)}; {limit}"))
        elif hasattr(item, "mode") and hasattr(item, "convert"):
            self._picture(index, item)
        else:
            self._numbers(index, item)

    def form(self, size: int) -> Pixels | list[bytes]:
        """Returns all of them in one form: pixels if they are alike and, as far as is known, of the models' size, and
        files otherwise."""
        self._read_floats()
        shapes = {array.shape for array in self._arrays.values()}
        wanted = self._sidecar.pixels
        if not self._files and len(shapes) == 1:
            shape = shapes.pop()
            if shape == wanted or (wanted is None and not self._pictures):
                blank = np.zeros(shape, np.uint8)
                return np.stack([self._arrays.get(index, blank) for index in range(size)])
        for index, array in self._arrays.items():
            self._file(index, png(array))
        return [self._files.get(index, b"") for index in range(size)]

    def _file(self, index: int, file: bytes) -> None:
        most = self._sidecar.max_image_bytes
        if not file:
            self._bad(index, "missing", ValueError(f"images[{index}] is empty; every candidate needs an image"))
        elif most is not None and len(file) > most:
            limit = f"the sidecar takes {most} (max_image_bytes)"
            self._bad(index, "too_large", ValueError(f"images[{index}] has {len(file)} bytes; {limit}"))
        else:
            self._files[index] = file

    def _picture(self, index: int, image: Any) -> None:
        """Reads a PIL image. What must be converted, Pillow converts."""
        self._pictures = True
        wide, high = image.size
        if self._too_large(index, high, wide):
            return
        try:
            if image.mode in ("L", "RGB"):
                self._arrays[index] = _channels_last(np.asarray(image))
                return
            file = io.BytesIO()
            (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=1)
        except Exception as error:  # images are read late, and what a broken file raises is of many types
            words = f"images[{index}] cannot be read: {str(error) or type(error).__name__}"
            self._bad(index, "unreadable", ValueError(words))
            return
        self._file(index, file.getvalue())

    def _numbers(self, index: int, item: Any) -> None:
        """Reads an array or a tensor: a picture, or the bytes of a file."""
        limit = "must be a file's bytes, a PIL image or a uint8 array"
        try:
            array = as_array(item)
        except Exception as error:  # whatever the object raises when it is asked for an array
            self._bad(index, "format", TypeError(f"images[{index}] is {kind_of(item)}; {limit} ({error})"))
            return
        if array.dtype.kind == "f" and array.ndim in (2, 3):
            self._floats[index] = array
        elif array.dtype != np.uint8:
            what = kind_of(item) if array.dtype.kind == "O" else f"of dtype {array.dtype}"
            self._bad(index, "format", TypeError(f"images[{index}] is {what}; {limit}"))
        elif array.ndim == 1:
            self._file(index, array.tobytes())
        elif array.ndim in (2, 3) and array.size:
            self._array(index, _channels_last(array))
        else:
            shape = f"images[{index}] has shape {list(array.shape)}"
            self._bad(index, "format", ValueError(f"{shape}; must be [H, W, C], [C, H, W] or [H, W]"))

    def _array(self, index: int, pixels: Pixels) -> None:
        high, wide, channels = pixels.shape
        if channels not in _COLOURS and pixels.shape != self._sidecar.pixels:
            limit = "must be 1 to 4, in the last or the first dimension"
            self._bad(index, "format", ValueError(f"images[{index}] has {channels} channels; {limit}"))
        elif not self._too_large(index, high, wide):
            self._arrays[index] = pixels

    def _read_floats(self) -> None:
        """Reads float pictures if all of them are whole steps of 1/255 from 0 to 1, as ToTensor makes them. Others are
        normalised, and nobody can know how."""
        alike = all(_are_steps(array) for array in self._floats.values())
        for index, array in self._floats.items():
            if alike:
                self._array(index, _channels_last(_whole(array)))
            else:
                ends = f"{np.min(array, initial=np.inf):.3g} to {np.max(array, initial=-np.inf):.3g}"
                self._bad(
                    index, "format", TypeError(f"images[{index}] has dtype {array.dtype}, from {ends}; {INSTEAD}")
                )

    def _too_large(self, index: int, high: int, wide: int) -> bool:
        most = self._sidecar.max_image_pixels
        if most is None or high * wide <= most:
            return False
        limit = f"the sidecar takes {most} (max_image_pixels)"
        self._bad(index, "too_large", ValueError(f"images[{index}] has {high} x {wide} pixels; {limit}"))
        return True

    def _bad(self, index: int, reason: str, error: Exception) -> None:
        self._exclusions.exclude(index, reason, error)


def _batch(array: NDArray[Any]) -> Pixels:
    """Returns a whole batch of pixels, channels last."""
    if array.dtype.kind == "f" and array.ndim in (3, 4) and array.size and _are_steps(array[0]) and _in_range(array):
        array = _whole(array)
    if array.dtype != np.uint8:
        words = f"images has dtype {array.dtype}; must be uint8"
        raise TypeError(f"{words}: {INSTEAD}" if array.dtype.kind == "f" and array.size else words)
    if array.ndim == 3:
        array = array[..., None]  # these are grey images without a channel axis
    if array.ndim != 4 or not len(array):
        raise ValueError(f"images has shape {list(array.shape)}; must have 4 dimensions and at least one row")
    return _channels_last(array)


def _channels_last(pixels: NDArray[Any]) -> Pixels:
    """Returns [..., H, W, C] of pictures that may have their channels first, as torch has them, or no channel axis."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[-1] not in _CHANNELS and pixels.shape[-3] in _CHANNELS:
        return np.moveaxis(pixels, -3, -1)
    return pixels


def _in_range(array: NDArray[Any]) -> bool:
    return bool(array.size) and float(array.min()) >= 0 and float(array.max()) <= 1


def _are_steps(array: NDArray[Any]) -> bool:
    """Whether these are pixels as ToTensor makes them: whole numbers from 0 to 255, divided by 255."""
    if not _in_range(array):
        return False
    scaled = array.astype(np.float32) * 255
    return bool((np.abs(scaled - np.round(scaled)) < (0.1 if array.dtype.itemsize == 2 else 1e-3)).all())


def _whole(array: NDArray[Any]) -> Pixels:
    return np.round(array.astype(np.float32) * 255).astype(np.uint8)
