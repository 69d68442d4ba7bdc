"""The simplest selections that a client can ask for: of losses."""

import numpy as np
from selector_client import Selector

LEARNER, REFERENCE = np.random.default_rng(0).random((2, 50), dtype=np.float32)


def independent(address, **settings) -> Selector:
    return Selector(address, policy="independent", **settings)


def losses(selector, **options):
    return selector.select_losses(LEARNER, REFERENCE, **options)
