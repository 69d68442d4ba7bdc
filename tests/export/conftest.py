import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_and_single():
    """torch's exporter logs thousands of lines, which would hide what a failing test says."""
    logging.getLogger("torch.__trace").propagate = False
    torch.set_num_threads(1)
