"""Clocks that are wrong, of publisher and sidecar, before and while they run: nothing is ordered by them."""

import logging
import os
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from selector_client.publishing import shipping
from selector_client.publishing.listeners import Listeners
from selector_proto import files
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import weights_pb2
from selector_proto.weights import clock
from selector_proto.weights.layout import Keys
from selector_proto.weights.reports import encode_report
from selector_proto.weights.transports import open_store
from support.model import TwoTower
from support.processes import eventually
from support.runs import IDS, PIXELS, POLL, Run, newest, views
from support.wire import raw

from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.weights_metrics import WeightsMetrics
from selector_server.weights import dating, versions
from selector_server.weights.dating import Clocks, Dating
from selector_server.weights.fetcher import Fetched
from selector_server.weights.host_share import HostShare
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import Version, Versions

DAY = 86400.0
REFUSE = pb.STALENESS_POLICY_REFUSE


@pytest.fixture
def skewed(monkeypatch):
    """Sets the publisher's wall clock ahead by so many seconds, from now on. It is not that of the whole process, since
    gRPC counts its deadlines by it."""

    def set_ahead(seconds):
        wrong = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
        for module in (clock, shipping):
            monkeypatch.setattr(module, "time", wrong)

    return set_ahead


def skew_of(run) -> float:
    return run.server.metrics()("selector_weights_clock_skew_seconds")


def forget(run) -> None:
    """Redis is emptied, as far as the run goes."""
    run.redis.delete(*run.redis.scan_iter(f"*{{{run.keys.run}}}*"))


@pytest.fixture(scope="module")
def run(start_sidecars, bundles, redis_url):
    with start_sidecars() as start:
        one = Run("clocks", redis_url, start(bundles.flags | POLL | {"redis": redis_url, "run": "clocks"}), bundles)
        yield one
        one.publisher.close()


@pytest.mark.parametrize("ahead", [DAY, -DAY, 30.0])
def test_ages_are_right_though_the_publishers_clock_is_not(run, skewed, ahead):
    skewed(ahead)
    run.take_over()
    published = time.monotonic()
    version = run.publish(TwoTower(70))
    eventually(lambda: run.select().weights.age_seconds > 1.0)
    assert run.select().weights.age_seconds <= time.monotonic() - published + 0.1
    error = run.server.refuse(raw(PIXELS, IDS, max_age_seconds=1.0, when_stale=REFUSE))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"version {version} is served, 1" in error.details() or f"version {version} is served, 2" in error.details()
    assert not run.select(max_age_seconds=60.0, when_stale=REFUSE).stale
    assert skew_of(run) == pytest.approx(ahead, abs=1)


def test_the_log_tells_of_the_clock_once(run):
    """After the test above, within ten minutes."""
    lines = [line for line in run.server.text.splitlines() if "the publisher's clock is" in line]
    assert len(lines) == 1
    assert "86400.0 s ahead of this host's; it is 86400.0 s ahead of the store's clock, by which ages" in lines[0]
    assert "this host's is 0.0 s" in lines[0]


def test_a_right_clock_is_served_after_one_that_was_ahead_and_an_emptied_redis(run, skewed, monkeypatch):
    skewed(DAY)
    run.take_over()
    run.publish(TwoTower(71))
    monkeypatch.undo()
    run.publisher.close()
    forget(run)
    run.publisher = WeightPublisher(run.url, run.keys.run)
    assert run.publish(TwoTower(72), step=5) == 1
    assert run.server.status().serving.trainer_step == 5
    assert abs(skew_of(run)) < 1


def test_the_last_publisher_to_start_owns_an_emptied_run_whoever_is_ahead(redis_url, run_name, skewed, monkeypatch):
    skewed(DAY)
    with WeightPublisher(redis_url, run_name, ttl=2) as old:
        old.publish(1, {"w": np.float32(1)})
        assert old.flush()
        monkeypatch.undo()
        client = redis.Redis.from_url(redis_url)
        client.delete(*client.scan_iter(f"*{{{run_name}}}*"))
        with WeightPublisher(redis_url, run_name) as new:
            new.publish(2, {"w": np.float32(2)})
            assert new.flush(), new.last_error
            old.publish(3, {"w": np.float32(3)})
            eventually(lambda: old.fenced)
            assert not new.fenced
            assert newest(redis_url, run_name).manifest.trainer_step == 2


# Publishers that do not tell how their clock differs from the store's, such as older ones


def test_a_publication_of_the_future_ages_from_its_arrival(run):
    put = time.monotonic()
    version = run.put(views(TwoTower(73)), published_at=time.time() + DAY)
    eventually(lambda: run.server.status().serving.version == version)
    eventually(lambda: run.select().weights.age_seconds > 0.5)
    assert run.select().weights.age_seconds <= time.monotonic() - put
    assert run.server.refuse(raw(PIXELS, IDS, max_age_seconds=0.5, when_stale=REFUSE))
    assert skew_of(run) == pytest.approx(DAY, abs=2)


def test_a_publication_that_was_seen_to_arrive_and_says_it_is_a_day_old_is_doubted(run):
    version = run.put(views(TwoTower(74)), published_at=time.time() - DAY)
    eventually(lambda: run.server.status().serving.version == version)
    error = run.server.refuse(raw(PIXELS, IDS, max_age_seconds=60.0, when_stale=REFUSE))
    assert " s old (its publisher's clock seems to be about 86400 s behind ours)" in error.details()
    assert skew_of(run) == pytest.approx(-DAY, abs=2)


# Look by look, with clocks that are told


class Clock:
    """The two clocks of this host."""

    def __init__(self, monkeypatch) -> None:
        self.wall, self.running = 1000.0, 50.0
        own = SimpleNamespace(time=lambda: self.wall, monotonic=lambda: self.running)
        for module in (dating, versions):
            monkeypatch.setattr(module, "time", own)

    def pass_by(self, seconds) -> None:
        self.wall, self.running = self.wall + seconds, self.running + seconds


@pytest.fixture
def clocks(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("published_at", "known", "age", "skew", "doubt"),
    [
        (990.0, Clocks(0.0, 0.0), 10.0, 0.0, ""),
        (990.0 + DAY, Clocks(DAY, 0.0), 10.0, DAY, ""),
        (990.0 - DAY, Clocks(-DAY, 0.0), 10.0, -DAY, ""),
        (990.0 - DAY, Clocks(0.0, DAY), 10.0, -DAY, ""),  # ours is ahead
        (990.0 + DAY, Clocks(0.0, -DAY), 10.0, DAY, ""),
        (990.0 - DAY, Clocks(None, DAY), 10.0, 0.0, ""),  # ours is ahead, and nobody says how right theirs is
        (990.0, Clocks(), 10.0, 0.0, ""),
        (1000.0 + DAY, Clocks(), 2.0, DAY + 2.0, ""),
        (990.0 - DAY, Clocks(), DAY + 10.0, -DAY - 7.0, "its publisher's clock seems to be about 86407 s behind ours"),
        (900.0, Clocks(), 100.0, 0.0, ""),  # it may have been sent for so long
        (1001.0, Clocks(0.0, 0.0), 2.0, 0.0, ""),  # it cannot be younger than its arrival
    ],
)
def test_what_is_made_of_a_date(clocks, published_at, known, age, skew, doubt):
    metrics = WeightsMetrics()
    one = Dating(metrics)
    one.saw(1)
    clocks.pass_by(1)
    one.saw(2)
    clocks.pass_by(2)
    one.saw(2)
    clocks.wall = 1000.0
    dated = one.date(published_at, known)
    assert (clocks.running - dated.at, dated.doubt) == (pytest.approx(age), doubt)
    assert metrics.clock_skew._value.get() == pytest.approx(skew)


def test_what_was_there_before_us_may_be_old(clocks):
    one = Dating(WeightsMetrics())
    one.saw(1)
    assert one.date(1000.0 - DAY, Clocks()).doubt == ""


def test_a_jump_of_this_hosts_clock_changes_no_age(clocks):
    one = Dating(WeightsMetrics())
    one.saw(1)
    version = Version(1, 1, one.date(995.0, Clocks(0.0, 0.0)), "weights")
    for jump in (DAY, -2 * DAY):
        clocks.wall += jump
        assert version.age_seconds() == 5.0
    clocks.pass_by(3)
    assert version.age_seconds() == 8.0


def test_the_log_has_a_line_in_ten_minutes_and_the_end_of_it(clocks, caplog):
    one, lines = Dating(WeightsMetrics()), []
    caplog.set_level(logging.WARNING)
    for ahead, passed in ((DAY, 0), (DAY, 10), (0.0, 10), (DAY, 10), (DAY, 600), (0.0, 10), (0.0, 600), (0.0, 600)):
        clocks.pass_by(passed)
        one.date(clocks.wall, Clocks(ahead, 0.0))
        lines.append(len(caplog.records))
    assert lines == [1, 1, 1, 1, 2, 2, 3, 3]
    assert caplog.records[2].getMessage() == "weights: the clocks of their publisher and of this host agree again"


def test_no_lower_number_of_a_publisher_that_was_followed_is_served():
    """A Redis that went back in time names it, whatever dates say; one that nobody knows began on an empty Redis."""
    store = SimpleNamespace(clocks=lambda manifest: Clocks())
    served = Versions(Version(0, 0, dating.Dated(0.0), b""))
    one = Subscriber(store, served, lambda *_: b"", Metrics(), 0.05, SimpleNamespace())
    told = []

    def look(version, publisher, published_at):
        store.newest, store.manifest = lambda: version, lambda _: f"{publisher} {version}".encode()
        about = {"version": version, "publisher": publisher, "published_at": published_at}
        manifest = SimpleNamespace(**about, trainer_step=1, payload_bytes=8)
        store.fetch = lambda *_: Fetched(manifest, {})
        assert one.poll()
        told.append(served.status.last_error)
        return served.current.version, served.current.publisher

    assert look(4, "first", 1000.0) == (4, "first")
    assert look(5, "second", 900.0) == (5, "second")
    assert look(3, "first", 2000.0) == (5, "second")
    assert look(5, "first", 2000.0) == (5, "second")
    assert look(2, "second", 2000.0) == (5, "second")
    assert look(1, "third", 10.0) == (1, "third")
    assert "version is 3; must be after version 5, which is served, since its publisher is known" in told[2]


# The store's clock


def test_a_store_tells_its_clock(redis_url, tmp_path, skewed):
    stores = [open_store(redis_url), open_store(tmp_path.as_uri(), write=True)]
    assert [clock.ahead(store, "key") for store in stores] == [pytest.approx(0.0, abs=0.5)] * 2
    skewed(DAY)
    assert [clock.ahead(store, "key") for store in stores] == [pytest.approx(DAY, abs=0.5)] * 2
    assert [clock.now(store, "key") for store in stores] == [pytest.approx(time.time(), abs=0.5)] * 2
    assert clock.ahead(open_store(tmp_path.as_uri()), "key") is None, "readers write nothing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [b"", b"nan", b"inf", b"a day", b"1" * 32, b"\xff"])
def test_a_difference_that_is_none_is_not_believed(text):
    assert clock.decode(text) is None
    assert clock.decode(clock.encode(-1.5)) == -1.5


def test_reports_are_believed_by_the_stores_clock(redis_url, run_name, skewed):
    store, keys = open_store(redis_url), Keys(run_name)
    report = weights_pb2.SidecarReport(sidecar="s", reported_at=time.time(), state="pinned", reason="why")
    store.put_all([(keys.report(0), memoryview(encode_report(report)))], 60)
    skewed(DAY)
    listeners = Listeners(store, keys, None)
    listeners.hear()
    assert listeners.unserved == {"pinned": 1}


def test_what_another_publisher_is_writing_stays_though_our_clock_is_ahead(tmp_path, monkeypatch):
    unfinished = tmp_path / ".fresh.unfinished"
    unfinished.write_bytes(b"half")
    monkeypatch.setattr(files, "time", SimpleNamespace(time=lambda: time.time() + DAY, monotonic=time.monotonic))
    open_store(tmp_path.as_uri(), write=True)
    assert unfinished.exists()


def test_what_was_shared_last_stays_though_the_clock_went_back(tmp_path):
    """The others' files are of tomorrow."""
    share = HostShare(tmp_path)
    for number in range(4):
        payload = memoryview(bytearray(bytes([number]) * 8))
        share.fill(payload, bytes([number]) * 32, lambda: None)
        os.utime(tmp_path / f"{bytes([number]).hex() * 32}.weights", (time.time() + DAY,) * 2)
    share.fill(memoryview(bytearray(b"newest!!")), b"\x09" * 32, lambda: None)
    assert (tmp_path / f"{'09' * 32}.weights").read_bytes() == b"newest!!"
    assert len(list(tmp_path.glob("*.weights"))) == 2
