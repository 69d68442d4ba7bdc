"""Leaves out candidates whose reference loss is known to be high, before anybody decodes or encodes them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector_server.engine.closed import Closing, Prefiltered
from selector_server.engine.task import Task


def close_prefiltered(
    task: Task[Any], closing: Closing, rows: NDArray[np.int64], known: NDArray[np.bool_], worth: NDArray[np.float64]
) -> None:
    """Of these open `rows`, int64 [n], the reference's loss is `known`, bool [n], of some; the larger their `worth`,
    float64 [known], the lower it is. All but the p * b of lowest loss are closed, if the task has a prefilter p; ties
    go to the lower index. Those whose loss is not known stay."""
    if task.rule.prefilter is None:
        return
    candidates = rows[known]
    kept = math.floor(task.rule.prefilter * task.plan.picks + 1e-6)
    left_out = candidates[np.argsort(-worth, kind="stable")[kept:]]
    closing.prefilter(Prefiltered(len(candidates), len(rows) - len(candidates), np.sort(left_out)))
