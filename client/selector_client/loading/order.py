"""Tells super-batches from one another, so that a loader that resumes sees whether its source repeats its order."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

_NOT_REPEATED = (
    "super_batches did not repeat their order, so that samples which were trained on come again, and others never: "
    "seed their order (and the epoch's), or use ones that keep their own state (SelectingLoader.over, torchdata's "
    "StatefulDataLoader)"
)


class Order:
    """Checks whether super-batches that are drawn again are those that they were."""

    def __init__(self, strict: bool) -> None:
        self._strict, self._said = strict, False

    def same(self, wanted: str, found: str) -> bool:
        """Compares two digests, of which an empty one is not known. If they differ there is a warning, once, or
        ValueError if it is strict."""
        if not wanted or found == wanted:
            return True
        if self._strict:
            raise ValueError(_NOT_REPEATED)
        if not self._said:
            log.warning(_NOT_REPEATED)
        self._said = True
        return False


def digest_of(shown: Mapping[str, Any]) -> str:
    """Returns a short word for what a selector is shown of a super-batch: for its ids, or else for its texts. The
    images, which are large and may be cropped at random, do not count."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, shown.get("ids") if shown.get("ids") is not None else shown.get("texts"))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    elif hasattr(value, "to_pylist"):
        value = value.to_pylist()
    if isinstance(value, str):
        digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
    elif isinstance(value, bytes | bytearray):
        digest.update(bytes(value) + b"\0")
    elif isinstance(value, Mapping):
        _add(digest, [part for pair in value.items() for part in pair])
    elif isinstance(value, Sequence) or (hasattr(value, "tolist") and _of_objects(value)):
        for part in value if isinstance(value, Sequence) else value.tolist():
            _add(digest, part)
    elif hasattr(value, "__array__"):
        digest.update(np.ascontiguousarray(value).tobytes())
    else:
        digest.update((repr(value) if isinstance(value, int | float) else type(value).__name__).encode())


def _of_objects(value: Any) -> bool:
    return str(getattr(value, "dtype", "")).startswith(("object", "<U", "|S", "str"))
