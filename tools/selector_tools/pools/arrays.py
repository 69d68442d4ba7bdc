"""A pool in one .npz file: `images` uint8 [n, H, W, C], `tokens` int [n, T] or `texts` (strings), and optionally
`ids` int64 [n] (by default the row numbers) and `captions` (strings)."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.errors import SetupError
from selector_tools.pools.pool import Batch

_NAMES = ("images", "tokens", "texts", "ids", "captions")


class ArrayPool:
    """The pairs of an .npz file, which is held in memory as a whole. Raises SetupError if it is malformed."""

    def __init__(self, path: Path) -> None:
        arrays = _read(path)

        def check(name: str, fine: bool, limit: str) -> None:
            if not fine:
                found = f"{arrays[name].dtype} {list(arrays[name].shape)}" if name in arrays else "missing"
                raise SetupError(f"--pool {path}: {name}", found, limit)

        images = arrays.get("images")
        check("images", images is not None and images.dtype == np.uint8 and images.ndim == 4, "must be uint8 [n,H,W,C]")
        assert images is not None
        self.size: int = len(images)
        if not self.size:
            raise SetupError("--pool", path, "holds no pair of image and text")
        rows = (self.size,)
        if "tokens" in arrays:
            tokens = arrays["tokens"]
            fine = tokens.dtype.kind in "iu" and tokens.ndim == 2 and len(tokens) == self.size
            check("tokens", fine, f"must be integers [{self.size}, T]")
        else:
            check("texts", "texts" in arrays, "an .npz needs tokens or texts")
        for name in arrays.keys() & {"texts", "captions"}:
            fine = arrays[name].dtype.kind == "U" and arrays[name].shape == rows
            check(name, fine, f"must be strings [{self.size}]")
        ids: NDArray[np.int64] = arrays.get("ids", np.arange(self.size))
        check("ids", ids.dtype == np.int64 and ids.shape == rows, f"must be int64 [{self.size}]")
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < self.size:
            raise SetupError(f"--pool {path}: ids", values[counts > 1][0], "is there twice")
        self._ids, self._images = ids, images
        self._tokens, self._texts = arrays.get("tokens"), arrays.get("texts")
        self._captions = arrays.get("captions", self._texts)

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.size, size):
            part = slice(start, start + size)
            texts: Any
            if self._tokens is not None:
                texts = self._tokens[part]
            else:
                assert self._texts is not None
                try:
                    texts = [text.encode() for text in self._texts[part].tolist()]
                except UnicodeEncodeError as error:
                    raise SetupError("--pool: texts", f"of rows {start} and on", f"must be text: {error}") from error
            captions = None if self._captions is None else self._captions[part].tolist()
            yield Batch(self._ids[part], self._images[part], texts, captions)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _NAMES if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SetupError("--pool", path, f"must be an .npz file without pickled objects: {reason}") from error
