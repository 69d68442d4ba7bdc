"""How many candidates are picked, and what they may be called: what trainer and sidecar must agree on."""

import math

DEFAULT_FILTER_RATIO = 0.8
# Of a sample id that is a string: a key of the reference cache holds it beside the reference's fingerprint.
MAX_ID_BYTES = 240


def sub_batch_size(candidates: int, filter_ratio: float) -> int:
    """b = floor(B (1 - f) + 1e-6).

    The guard keeps B (1 - f) from falling just below a whole number: computed naively, as in the paper's
    pseudo-code, f = 0.8 gives 2047 instead of 2048 picks a chunk.
    """
    return math.floor(candidates * (1 - filter_ratio) + 1e-6)
