"""Which candidates may not be picked, as the contract says it: what the client excludes, and what the reply names."""

from collections.abc import Mapping

import numpy as np
from selector_proto.contract import MAX_WORDS
from selector_proto.v1 import selector_pb2 as pb

from selector_server.engine.closed import Closed, Closing
from selector_server.errors import Exclusion, InvalidRequest

REASONS: Mapping[int, Exclusion] = {pb.ExclusionReason.Value(f"EXCLUSION_REASON_{one.name}"): one for one in Exclusion}
_CODES = {reason: pb.ExclusionReason.ValueType(code) for code, reason in REASONS.items()}


def read_exclusions(selection: pb.Selection) -> Closing:
    """What the client excludes itself. That its indices are candidates cannot be known before the candidates are read.
    Raises InvalidRequest."""
    closing = Closing()
    for number, exclusion in enumerate(selection.exclusions):
        field = f"exclusions[{number}]"
        if (reason := REASONS.get(exclusion.reason)) is None:
            names = ", ".join(pb.ExclusionReason.Name(code) for code in _CODES.values())
            raise InvalidRequest(f"{field}.reason", exclusion.reason, f"must be one of {names}")
        if len(exclusion.first) > MAX_WORDS:
            raise InvalidRequest(f"{field}.first", f"{len(exclusion.first)} characters", f"at most {MAX_WORDS}")
        indices = np.array(exclusion.indices, np.int64)
        if (unordered := np.flatnonzero(np.diff(indices) <= 0)).size:
            before, after = indices[unordered[0] : unordered[0] + 2].tolist()
            raise InvalidRequest(f"{field}.indices", f"{after} after {before}", "must be ascending")
        for index in indices.tolist():
            if index in closing:
                raise InvalidRequest(f"{field}.indices", index, "no candidate may be excluded twice")
            closing.close(index, reason, exclusion.first)
    return closing


def check_exclusions(selection: pb.Selection, size: int) -> None:
    """Raises InvalidRequest if the client excludes what is none of its `size` candidates."""
    for number, exclusion in enumerate(selection.exclusions):
        if exclusion.indices and exclusion.indices[-1] >= size:
            limit = f"must be below the number of candidates, {size}"
            raise InvalidRequest(f"exclusions[{number}].indices", exclusion.indices[-1], limit)


def write_exclusions(closed: Closed) -> list[pb.Exclusion]:
    """One entry for each reason that there is, in the order of the contract's numbers."""
    return [
        pb.Exclusion(reason=_CODES[reason], indices=closed.indices(reason), first=closed.first[reason][1])
        for reason in REASONS.values()
        if reason in closed.first
    ]
