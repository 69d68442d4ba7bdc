"""Which candidates may not be picked, and what is said of it: without a server."""

from dataclasses import replace

import numpy as np
import pytest
from support.model import POLICIES, plan

from selector_server.engine.candidates.embeddings import Embeddings, ModelEmbeddings
from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.engine.closed import Closed
from selector_server.engine.request import Request
from selector_server.engine.task import Rule, Task
from selector_server.errors import Exclusion, NotPossible
from selector_server.sampling import Criterion, Loss

LOSSES = np.array([5, 1, 4, 0, 3, 2], np.float32)
# A candidate that would be kept, if it could be used.
UNUSABLE = Closed({3: Exclusion.VALUE}, {Exclusion.VALUE: (3, "not finite")})


def embeddings() -> Embeddings:
    """The larger a candidate's reference loss is, the less its image and its text are alike."""
    angles = LOSSES / 10
    image = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Embeddings(None, ModelEmbeddings(image, np.broadcast_to(np.float32([1, 0]), (6, 2)), 10.0, -9.0))


@pytest.mark.parametrize("candidates", [ScalarLosses(None, LOSSES), embeddings()], ids=["losses", "embeddings"])
def test_a_prefilter_closes_all_but_the_usable_ones_of_lowest_reference_loss(candidates):
    rule = Rule(Criterion.EASY_REFERENCE, Criterion.EASY_REFERENCE, Loss.SIGMOID, prefilter=1.5)
    task = Task(replace(candidates, closed=UNUSABLE), POLICIES["independent"], rule, plan(2))
    closed = task.candidates.prepare(task, None, Request()).closed
    assert closed.open_rows(6).tolist() == [1, 4, 5], "1.5 times 2"
    assert closed.prefiltered.rows.tolist() == [0, 2]
    assert (closed.prefiltered.known, closed.prefiltered.unknown) == (5, 0)
    assert (closed.reasons, closed.first) == (UNUSABLE.reasons, UNUSABLE.first)


def test_a_refusal_names_the_most_frequent_reason_first():
    why = {0: Exclusion.TEXT, 1: Exclusion.UNREADABLE, 2: Exclusion.UNREADABLE}
    closed = Closed(why, {Exclusion.TEXT: (0, "empty"), Exclusion.UNREADABLE: (1, "torn")})
    with pytest.raises(NotPossible) as caught:
        closed.check(4, 2, 1.0)
    excluded = "2 unreadable (candidate 1: torn), 1 text (candidate 0: empty)"
    assert str(caught.value) == f"candidates left is 1 of 4; 2 must be picked; excluded are {excluded}"
