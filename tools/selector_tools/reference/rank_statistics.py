"""Statistics of ranks: how well two orders agree, and how well values tell two groups apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]


def average_ranks(values: Values) -> NDArray[np.float64]:
    """Ranks n values, 1 for the smallest; equal ones share the mean of their ranks. float64 [n], in O(n log n)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def rank_correlation(first: Values, second: Values) -> float:
    """Spearman's rank correlation, -1 to 1; NaN where all values of one side are equal."""
    a, b = (average_ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    with np.errstate(invalid="ignore"):
        return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def auc(low: Values, high: Values) -> float:
    """The chance that one of `low` is below one of `high`, ties counting half. NaN where one is empty."""
    if not len(low) or not len(high):
        return float("nan")
    ranks = average_ranks(np.concatenate([low, high]))
    above = ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(above / (len(low) * len(high)))
