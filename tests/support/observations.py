"""Selections as an inspection sees them, made up from a seed."""

import time

import numpy as np

from selector_server.engine.task import ServedWeights
from selector_server.errors import Exclusion
from selector_server.inspection.observation import Content, Fate, Observation
from selector_server.sampling.locality import Locality

RULE = {"policy": "joint", "criterion": "learnability", "gain": "100", "chunks": "4", "draw": "sample"}


def observation(size=20, *, number=1, picks=5, excluded=1, ids=(), captions=(), tags=(), pictures=None, **changes):
    """The picks are those of highest score; the last candidates are excluded. It has content if any is given."""
    rng = np.random.default_rng(number)
    reference = rng.gamma(2.0, 1.0, size).astype(np.float32)
    learner = reference + rng.normal(1.0, 0.5, size).astype(np.float32)
    closed = np.arange(size - excluded, size)
    learner[closed] = reference[closed] = np.nan
    scores = learner - reference
    best = np.argsort(-np.nan_to_num(scores, nan=-np.inf))[:picks]
    fates, order = np.full(size, Fate.DROPPED, np.uint8), np.zeros(size, np.uint32)
    fates[closed], fates[best], order[best] = Fate.EXCLUDED, Fate.PICKED, np.arange(1, picks + 1)
    given = any(len(column) for column in (ids, captions, tags)) or bool(pictures)
    fields = {
        "at": time.time(),
        "step": number,
        "rule": RULE,
        "fates": fates,
        "order": order,
        "learner": learner,
        "reference": reference,
        "scores": scores,
        "reasons": dict.fromkeys(closed.tolist(), Exclusion.UNREADABLE),
        "weights": ServedWeights(3, 100, 2.0, 4, stale=False),
        "locality": Locality(0.2, 0.2, 0.01),
        "shuffled_loss": 9.0,
        "content": Content(ids, captions, tags, pictures or {}) if given else None,
        "number": number,
    }
    return Observation(**(fields | changes))
