"""The subscriber beside a learner that fails in ways that nobody thought of."""

import time

import numpy as np
import pytest
from selector_client import WeightPublisher
from support.processes import eventually

from selector_server.telemetry.metrics import Metrics
from selector_server.weights import subscriber
from selector_server.weights.fetcher import Fetcher, News
from selector_server.weights.history import Outcome
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import SyncState, Version, Versions


class Learner:
    """Binds nothing while it has no memory."""

    def __init__(self) -> None:
        self.asked, self.memory = 0, False

    def bind(self, tensors, timed):
        self.asked += 1
        if not self.memory:
            raise RuntimeError("out of memory")
        return bytes(tensors["w"].data)


@pytest.fixture
def following(redis_url, run_name):
    learner, metrics = Learner(), Metrics()
    versions = Versions(Version(0, 0, 0.0, b""))
    fetcher, news = Fetcher(redis_url, run_name, 1 << 30), News(redis_url, run_name)
    one = Subscriber(fetcher, versions, learner.bind, metrics, 0.05, news)
    one.start()
    yield learner, versions, metrics
    one.stop()


def test_what_cannot_be_bound_is_counted_told_and_tried_again_later_and_later(
    following, redis_url, run_name, monkeypatch
):
    learner, versions, metrics = following
    monkeypatch.setattr(subscriber, "MAX_BACKOFF_SECONDS", 0.05)
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(7, {"w": np.float32(1)})
        assert publisher.flush()
        eventually(lambda: learner.asked)
        time.sleep(2)
        tries = learner.asked
        assert 2 <= tries <= 8, "the whole of it is fetched each time"
        assert versions.status.state is SyncState.REJECTED
        assert versions.status.last_error == "version 1: RuntimeError: out of memory"
        assert metrics.sync.labels("refused")._value.get() == tries
        last = versions.history()[-1]
        assert (last.version, last.trainer_step, last.outcome, last.times) == (1, 7, Outcome.REFUSED, tries)
        learner.memory = True
        eventually(lambda: versions.current.version == 1)
        publisher.publish(8, {"w": np.float32(2)})
        assert publisher.flush()
        eventually(lambda: versions.current.version == 2)
    assert versions.current.weights == np.float32(2).tobytes()
