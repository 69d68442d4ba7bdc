"""A pool in one .npz file: `images` uint8 [n, H, W, C], `tokens` int [n, T] or `texts` (strings), and optionally
`ids` int64 [n] (by default the row numbers) and `captions` (strings)."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.errors import Exclusion, InvalidRequest, SelectorError, SetupError
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
        self._repeated = np.ones(self.size, np.bool_)
        self._repeated[np.unique(ids, return_index=True)[1]] = False
        self._ids, self._images = ids, images
        self._tokens, self._texts = arrays.get("tokens"), arrays.get("texts")
        self._captions = arrays.get("captions", self._texts)

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.size, size):
            rows = np.arange(start, min(start + size, self.size))
            bad: list[tuple[object, SelectorError]] = []
            for row in rows[self._repeated[rows]].tolist():
                error = InvalidRequest("id", "there twice", "an earlier row has the same")
                bad.append((self._ids[row], error.excluding(Exclusion.REPEATED)))
            rows = rows[~self._repeated[rows]]
            texts: Any
            if self._tokens is not None:
                texts = self._tokens[rows]
            else:
                texts, rows = self._encoded(rows, bad)
            captions = None if self._captions is None else self._captions[rows].tolist()
            yield Batch(self._ids[rows], self._images[rows], texts, captions, bad)

    def _encoded(
        self, rows: NDArray[np.int64], bad: list[tuple[object, SelectorError]]
    ) -> tuple[list[bytes], NDArray[np.int64]]:
        """Returns the texts of these rows as UTF-8, and the rows of those that can be; the others go to `bad`."""
        assert self._texts is not None
        texts, good = [], []
        for row, text in zip(rows.tolist(), self._texts[rows].tolist(), strict=True):
            try:
                texts.append(text.encode())
                good.append(row)
            except UnicodeEncodeError as error:
                wrong = InvalidRequest("text", ascii(text), f"must be Unicode: {error}")
                bad.append((self._ids[row], wrong.excluding(Exclusion.TEXT)))
        return texts, np.array(good, np.int64)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _NAMES if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SetupError("--pool", path, f"must be an .npz file without pickled objects: {reason}") from error
