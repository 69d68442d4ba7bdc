"""Hears from replies that the sidecar does not serve the trainer's newest weights, and tells the trainer."""

import logging
from collections import Counter

from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.reports import kind_of, printable

from selector_client.selecting.selection import UNSERVED

log = logging.getLogger(__name__)

# More kinds of reasons than any sidecar has.
_MOST = 64


class Unserved:
    """Counts the replies that say so, by the sidecar's state, and logs each kind of reason once."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._told: set[str] = set()

    def hear(self, response: pb.SelectResponse) -> None:
        """Takes note of what a reply says of the newest weights."""
        if not response.HasField("unserved_weights"):
            return
        found = response.unserved_weights
        state, reason = UNSERVED.get(found.state, "other"), printable(found.reason)
        self._counts[state] += 1
        if (kind := f"{state} {kind_of(reason)}") in self._told or len(self._told) >= _MOST:
            return
        self._told.add(kind)
        which = f"version {found.version} of the weights" if found.version else "the newest weights"
        served = f"version {response.weights.version}" if response.HasField("weights") else "older ones"
        log.warning("the sidecar does not serve %s (%s), but %s; training goes on: %s", which, state, served, reason)
