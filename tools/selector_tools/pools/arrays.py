"""A pool in one .npz file: `images` uint8 [n, H, W, C], `tokens` int [n, T] or `texts` (strings [n], or [n, K] if an
image has up to K captions), and optionally `ids` int64 [n] (by default the row numbers), `captions` (strings) and
`tags` int64 [n]."""

import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from selector_proto.contract import caption_id

from selector_server.errors import Exclusion, InvalidRequest, SelectorError, SetupError
from selector_tools.pools import storage
from selector_tools.pools.captions import in_utf8
from selector_tools.pools.places import names
from selector_tools.pools.pool import Batch, Known, Namespace

_NAMES = ("images", "tokens", "texts", "ids", "captions", "tags")


class ArrayPool:
    """The pairs of an .npz file, which is held in memory as a whole. A row is as many pairs as it has captions; empty
    ones do not count where there is room for several. It is one shard. Raises SetupError if it is malformed."""

    ids: ClassVar[Namespace] = "integer"

    def __init__(self, place: str) -> None:
        self.name, self.place = names([place])[0], place
        arrays = _read(place)

        def check(name: str, fine: bool, limit: str) -> None:
            if not fine:
                found = f"{arrays[name].dtype} {list(arrays[name].shape)}" if name in arrays else "missing"
                raise SetupError(f"--pool {place}: {name}", found, limit)

        images = arrays.get("images")
        check("images", images is not None and images.dtype == np.uint8 and images.ndim == 4, "must be uint8 [n,H,W,C]")
        assert images is not None
        count = len(images)
        if not count:
            raise SetupError("--pool", place, "holds no pair of image and text")
        if "tokens" in arrays:
            tokens = arrays["tokens"]
            fine = tokens.dtype.kind in "iu" and tokens.ndim == 2 and len(tokens) == count
            check("tokens", fine, f"must be integers [{count}, T]")
        else:
            check("texts", "texts" in arrays, "an .npz needs tokens or texts")
        texts, captions = arrays.get("texts"), arrays.get("captions")
        if texts is not None:
            fine = texts.dtype.kind == "U" and texts.ndim in (1, 2) and len(texts) == count
            check("texts", fine, f"must be strings [{count}] or [{count}, K]")
        if captions is not None:
            check("captions", captions.dtype.kind == "U" and captions.shape == (count,), f"must be strings [{count}]")
        ids: NDArray[np.int64] = arrays.get("ids", np.arange(count))
        check("ids", ids.dtype == np.int64 and ids.shape == (count,), f"must be int64 [{count}]")
        tags = arrays.get("tags", ids)
        check("tags", tags.dtype == np.int64 and tags.shape == (count,), f"must be int64 [{count}]")
        self._ids, self._images, self._tokens, self._tags = ids, images, arrays.get("tokens"), arrays.get("tags")
        self._repeated = np.ones(count, np.bool_)
        self._repeated[np.unique(ids, return_index=True)[1]] = False
        # Of each pair its row, its text, and the text's number where a row may have several.
        self._rows, self._numbers = np.arange(count), None
        if self._tokens is None and texts is not None and texts.ndim == 2:
            self._rows, self._numbers = np.nonzero(texts != "")
            texts = texts[self._rows, self._numbers]
        self._texts = texts
        self._captions = texts if captions is None else captions[self._rows]
        self.size: int = len(self._rows)
        check("texts", self.size > 0, "must have a text")

    def shards(self) -> "list[ArrayPool]":
        """Returns the whole."""
        return [self]

    def batches(self, size: int, known: Known | None = None) -> Iterator[Batch]:  # noqa: ARG002 - there is one shard
        """Yields the pairs, as Pool says."""
        bad = [(self._ids[row], _without_text()) for row in np.setdiff1d(np.arange(len(self._ids)), self._rows)]
        for start in range(0, self.size, size):
            pairs = np.arange(start, min(start + size, self.size))
            repeated = self._repeated[self._rows[pairs]]
            bad += [(self._named(pair), _there_twice()) for pair in pairs[repeated].tolist()]
            pairs = pairs[~repeated]
            texts: Any
            if self._tokens is not None:
                texts = self._tokens[self._rows[pairs]]
            else:
                texts, pairs = self._encoded(pairs, bad)
            rows = self._rows[pairs]
            ids: Any = self._ids[rows]
            if self._numbers is not None:
                ids = [self._named(pair) for pair in pairs.tolist()]
            captions = None if self._captions is None else self._captions[pairs].tolist()
            tags = None if self._tags is None else self._tags[rows]
            yield Batch(ids, self._images[rows], texts, captions, bad, tags=tags)
            bad = []

    def _named(self, pair: int) -> Any:
        one = self._ids[self._rows[pair]]
        return one if self._numbers is None else caption_id(one, int(self._numbers[pair]))

    def _encoded(
        self, pairs: NDArray[np.int64], bad: list[tuple[object, SelectorError]]
    ) -> tuple[list[bytes], NDArray[np.int64]]:
        """Returns the texts of these pairs as UTF-8, and the pairs of those that can be; the others go to `bad`."""
        assert self._texts is not None
        texts, good = [], []
        for pair, text in zip(pairs.tolist(), self._texts[pairs].tolist(), strict=True):
            try:
                texts.append(in_utf8(text))
                good.append(pair)
            except InvalidRequest as error:
                bad.append((self._named(pair), error))
        return texts, np.array(good, np.int64)


def _without_text() -> SelectorError:
    return InvalidRequest("text", "none", "a row needs at least one").excluding(Exclusion.MISSING)


def _there_twice() -> SelectorError:
    return InvalidRequest("id", "there twice", "an earlier row has the same").excluding(Exclusion.REPEATED)


def _read(place: str) -> dict[str, NDArray[Any]]:
    try:
        with storage.opened(place) as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in _NAMES if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SetupError("--pool", place, f"must be an .npz file without pickled objects: {reason}") from error
