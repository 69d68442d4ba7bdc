"""The store's clock. Both sides date by it what they write and read, since the clocks of trainers and sidecars may be
apart by any time: nobody's own clock decides anything."""

import math
import time

from selector_proto.weights.store import Store

MAX_TEXT_BYTES = 32


def ahead(store: Store, key: str) -> float | None:
    """Seconds by which this host's clock is ahead of the clock of the store that has `key`, negative if it is behind;
    None if the store does not tell. Raises StoreError."""
    before = time.time()
    there = store.clock(key)
    return None if there is None else (before + time.time()) / 2 - there


def now(store: Store, key: str) -> float:
    """The time by the store's clock, and by this host's if the store does not tell, in Unix seconds. Raises
    StoreError."""
    return time.time() - (ahead(store, key) or 0.0)


def encode(seconds: float) -> bytes:
    """A difference between clocks as it is stored."""
    return b"%.3f" % seconds


def decode(text: bytes) -> float | None:
    """The difference in seconds, None for what is not one."""
    try:
        seconds = float(text) if len(text) < MAX_TEXT_BYTES else math.nan
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
