"""Ranks, and how well two orders agree."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]


def average_ranks(values: Values) -> NDArray[np.float64]:
    """1 for the smallest of n values; equal ones share the mean of their ranks. float64 [n], in O(n log n)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def rank_correlation(first: Values, second: Values) -> float:
    """Spearman's, -1 to 1; NaN where all values of one side are equal."""
    a, b = (average_ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    with np.errstate(invalid="ignore"):
        return float((a @ b) / np.sqrt((a @ a) * (b @ b)))
