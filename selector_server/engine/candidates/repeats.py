"""Finds samples that are in a super-batch twice. Both copies would be picked: alike candidates score alike."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from selector_server.engine.candidates.preparation import Images, Texts
from selector_server.engine.closed import Closing
from selector_server.engine.request import Request
from selector_server.errors import Exclusion


def close_repeats(images: Images, texts: Texts, rows: NDArray[np.int64], closing: Closing, request: Request) -> None:
    """Closes those of these candidates whose image and text are, to the byte, an earlier one's. Texts are compared
    first, so that few images need a digest. Raises what `request.check` raises."""
    alike: dict[bytes, list[int]] = {}
    for row in rows.tolist():
        alike.setdefault(bytes(texts[row]), []).append(row)
    for group in alike.values():
        if len(group) == 1:
            continue
        first: dict[bytes, int] = {}
        for row in group:
            request.check()
            digest = hashlib.blake2b(memoryview(images[row]), digest_size=16).digest()
            if (other := first.setdefault(digest, row)) != row:
                closing.close(row, Exclusion.REPEATED, f"samples[{row}] is the same sample as samples[{other}]")
