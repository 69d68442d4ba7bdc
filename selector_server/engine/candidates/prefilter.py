"""Leaves out candidates whose reference loss is known to be high, before anybody decodes or encodes them
(docs/adr/0021)."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from selector_server.engine.arrays import Floats
from selector_server.engine.closed import Closing, Prefiltered
from selector_server.engine.task import Task
from selector_server.sampling.locality import neighbours


def close_prefiltered(
    task: Task[Any],
    closing: Closing,
    rows: NDArray[np.int64],
    known: NDArray[np.bool_],
    worth: NDArray[np.float64],
    image: Floats | None = None,
) -> None:
    """Of these open `rows`, int64 [n], the reference's loss is `known`, bool [n], of some; the larger their `worth`,
    float64 [known], the lower it is. All but the p * b of lowest loss are closed by the task's prefilter p; ties go to
    the lower index. Those whose loss is not known stay. `image`, float [known, D], tells of neighbours, too."""
    assert task.rule.prefilter is not None, "whoever has no prefilter need not compute what a loss is worth"
    candidates = rows[known]
    kept = math.floor(task.rule.prefilter * task.plan.picks + 1e-6)
    left_out = candidates[np.argsort(-worth, kind="stable")[kept:]]
    beside = None
    if image is not None:
        unit = normalize(torch.from_numpy(np.array(image, np.float32)), dim=1)
        beside = neighbours(unit, torch.from_numpy(candidates), task.size)
    closing.prefilter(Prefiltered(len(candidates), len(rows) - len(candidates), np.sort(left_out), beside))
