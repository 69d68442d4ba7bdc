"""What encoding a sample takes is measured with enough samples at once."""

import pytest

from selector_server.encoding.bundle import load
from selector_server.encoding.device import Device
from selector_server.encoding.model import TIMED_SECONDS, Model
from selector_server.sampling import threads
from selector_server.sampling.threads import Threads


@pytest.mark.parametrize(
    ("micro_batch", "count", "seconds", "sizes"),
    [
        (16, 1, 2 * TIMED_SECONDS, [2]),
        (16, 1, TIMED_SECONDS / 2, [2, 4, 8, 16]),
        (1, 1, TIMED_SECONDS / 2, [2]),
        (16, 6, 2 * TIMED_SECONDS, [2, 4, 8]),
        (4, 6, TIMED_SECONDS / 2, [2, 4, 8]),
    ],
    ids=["slow", "never slow", "one at a time", "a sample for each thread", "more threads than a micro-batch"],
)
def test_sizes(bundles, monkeypatch, micro_batch, count, seconds, sizes):
    monkeypatch.setattr(threads, "_threads", Threads(count))
    model, tried = Model(load(bundles.reference_path, "reference"), Device("cpu"), micro_batch), []

    def timed(_, size):
        tried.append(size)
        return seconds * (1 - len(tried) / 1000)  # the second of a size is faster

    monkeypatch.setattr(model, "_seconds", timed)
    model.measure(model.constant_weights())
    assert tried == [size for size in sizes for _ in range(2)]
    assert model.seconds_per_sample == pytest.approx(seconds * (1 - len(tried) / 1000) / sizes[-1])
