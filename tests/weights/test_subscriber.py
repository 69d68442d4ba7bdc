"""The subscriber beside a learner that fails in ways that nobody thought of."""

import logging
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from selector_client import WeightPublisher
from selector_proto.weights.store import StoreUnavailable
from support.processes import eventually

from selector_server.errors import NotPossible
from selector_server.telemetry.metrics import Metrics
from selector_server.weights import subscriber
from selector_server.weights.dating import Clocks, Dated
from selector_server.weights.fetcher import Fetched, Fetcher, News
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
    versions = Versions(Version(0, 0, Dated(0.0), b""))
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
        eventually(lambda: versions.status.rejections == tries, 5)
        assert 2 <= tries <= 8, "the whole of it is fetched each time"
        assert versions.status.state is SyncState.REJECTED
        assert versions.status.last_error == "version 1: RuntimeError: out of memory"
        assert metrics.weights.sync.labels("refused")._value.get() == tries
        last = versions.history()[-1]
        assert (last.version, last.trainer_step, last.outcome, last.times) == (1, 7, Outcome.REFUSED, tries)
        learner.memory = True
        eventually(lambda: versions.current.version == 1)
        publisher.publish(8, {"w": np.float32(2)})
        assert publisher.flush()
        eventually(lambda: versions.current.version == 2)
    assert versions.current.weights == np.float32(2).tobytes()


# Look by look, without a store or a thread


class Store:
    """A fetcher of versions that are told."""

    def __init__(self):
        self.version, self.fetched = 0, []

    def newest(self):
        if self.version is None:
            raise StoreUnavailable("nobody answers")
        return self.version

    def manifest(self, version):
        return b"%d" % version

    def fetch(self, version, text):
        self.fetched.append(version)
        about = {"version": version, "trainer_step": 10 * version, "published_at": time.time(), "publisher": "one"}
        return Fetched(SimpleNamespace(**about, payload_bytes=8), {})

    def clocks(self, manifest):
        return Clocks()

    def danger(self):
        return ""

    def close(self):
        """It holds nothing."""


@pytest.fixture
def looking():
    """A store, the versions, and look(version): the subscriber sees it as the newest, and cannot bind the odd ones."""
    store, versions, bound = Store(), Versions(Version(0, 0, Dated(0.0), "bundled")), []

    def bind(tensors, timed):
        bound.append(store.version)
        if store.version % 2:
            raise NotPossible("weights", store.version, "must be even")
        return f"weights {store.version}"

    one = Subscriber(store, versions, bind, Metrics(), 0.05, SimpleNamespace())

    def look(version):
        store.version = version
        with suppress(StoreUnavailable):
            assert one.poll()
        return versions.status.state, versions.status.newest_version, versions.current.version

    return store, versions, look


def test_what_was_seen_before_is_not_fetched_again_and_told_as_it_was(looking):
    store, versions, look = looking
    assert look(0) == (SyncState.WAITING, 0, 0)
    assert look(2) == look(2) == (SyncState.CURRENT, 2, 2)
    for _ in range(2):
        assert look(3) == (SyncState.REJECTED, 3, 2)
        assert versions.status.last_error == "version 3: weights is 3; must be even"
    versions.report(SyncState.DISCONNECTED, None, "gone")
    assert look(3) == (SyncState.REJECTED, 3, 2)
    assert versions.status.last_error == "version 3 was refused before"
    assert look(2) == (SyncState.CURRENT, 2, 2), "whose pointer went back"
    assert look(4) == (SyncState.CURRENT, 4, 4)
    versions.report(SyncState.DISCONNECTED, None, "gone")
    assert look(4) == (SyncState.CURRENT, 4, 4)
    assert (versions.status.last_error, versions.status.rejections) == ("", 1)
    assert store.fetched == [2, 3, 4]


def test_while_one_is_pinned_newer_ones_are_seen_and_left_alone(looking):
    store, versions, look = looking
    look(2)
    versions.pin(2)
    assert look(4) == (SyncState.PINNED, 4, 2)
    versions.unpin()
    assert look(4) == (SyncState.CURRENT, 4, 4)
    assert store.fetched == [2, 4]


def test_what_is_wrong_is_logged_when_it_changes(looking, caplog):
    _, _, look = looking
    caplog.set_level(logging.INFO, "selector_server.weights.subscriber")
    for version in (2, 3, 5, 5):
        look(version)
    assert [record.getMessage() for record in caplog.records] == [
        "weights: serving version 2 of trainer step 20",
        "weights: version 3: weights is 3; must be even; version 2 goes on serving",
        "weights: version 5: weights is 5; must be even; version 2 goes on serving",
    ]


class Silent:
    """News that never come. Each wait is noted, with what the metrics say meanwhile; then the store answers otherwise,
    until all is said."""

    def __init__(self, store, metrics, answers):
        self.store, self.metrics, self.answers, self.waited = store, metrics, iter(answers), []

    def wait(self, seconds, stop):
        self.waited.append((seconds, self.metrics.registry.get_sample_value("selector_weights_source_connected")))
        try:
            self.store.version = next(self.answers)
        except StopIteration:
            stop.set()

    def close(self):
        """It holds nothing."""


def test_a_store_that_does_not_answer_is_asked_later_and_later_and_shown_as_gone():
    store, metrics = Store(), Metrics()
    silent = Silent(store, metrics, [None, None, None, 0])
    one = Subscriber(store, Versions(Version(0, 0, 0.0, b"")), lambda tensors, timed: b"", metrics, 1.0, silent)
    one.start()
    eventually(lambda: not one._thread.is_alive())
    one.stop()
    assert silent.waited == [(1.0, 1), (2.0, 0), (4.0, 0), (subscriber.MAX_BACKOFF_SECONDS, 0), (1.0, 1)]


class Deaf:
    """News that fail in a way that nobody thought of."""

    def wait(self, seconds, stop):
        raise RuntimeError("no ears")

    def close(self):
        """It holds nothing."""


def test_who_cannot_hear_news_goes_on_looking(caplog):
    store, versions = Store(), Versions(Version(0, 0, Dated(0.0), b""))
    one = Subscriber(store, versions, lambda tensors, timed: b"", Metrics(), 0.01, Deaf())
    one.start()
    for version in (2, 4):
        store.version = version
        eventually(lambda version=version: versions.current.version == version)
    one.stop()
    assert {record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR} == {
        "weights: announcements cannot be waited for"
    }
