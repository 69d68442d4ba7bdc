"""The trainer learns that it is not heard: by every reply, by reports in the store, once for each reason."""

import json
import logging
import time

import pytest
import redis
import torch
from selector_client import Selector, WeightPublisher
from selector_client.publishing.listeners import Listeners
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import weights_pb2
from selector_proto.weights.layout import Keys
from selector_proto.weights.reports import (
    MAX_REPORT_BYTES,
    SLOTS,
    decode_learner,
    encode_learner,
    encode_report,
)
from selector_proto.weights.store import StoreRefused
from selector_proto.weights.transports import open_store
from support.model import TwoTower
from support.processes import eventually
from support.runs import IDS, PIXELS, views

from selector_server.weights.dating import Dated
from selector_server.weights.reporter import Reporter
from selector_server.weights.versions import SyncState, Version, Versions

NAN = {"logit_scale": torch.tensor(torch.nan)}


def broken(seed):
    return TwoTower(seed).state_dict() | NAN


def test_every_reply_says_why_the_newest_version_is_not_served(run):
    run.take_over()
    good = run.publish(TwoTower(200))
    assert not run.select().HasField("unserved_weights")
    bad = run.put(views(TwoTower(201), **{"text.bias": None}))
    eventually(lambda: run.server.status().state == pb.SYNC_STATE_REJECTED)
    for reply in (run.select(), run.select(policy="uniform")):
        unserved = reply.unserved_weights
        assert (unserved.version, unserved.state) == (bad, pb.SYNC_STATE_REJECTED)
        assert "parameter text.bias is missing" in unserved.reason
        assert "1 of 7 parameters are missing: text.bias; nothing came instead" in unserved.reason
    assert run.select().weights.version == good
    run.publish(TwoTower(202))
    assert not run.select().HasField("unserved_weights")


def test_selector_and_publisher_warn_once_for_each_reason_and_count(run, caplog):
    run.take_over()
    run.publish(TwoTower(203))
    with Selector(run.server.address, seed=0) as selector, caplog.at_level(logging.WARNING, "selector_client"):
        for step in range(3):
            assert run.publisher.publish(step, broken(204 + step))
            assert run.publisher.flush()
            version = run.publisher.last_version
            eventually(lambda: (s := run.server.status()).newest_version == version and s.state == 4)  # noqa: B023
            selector.select(PIXELS, IDS)
        # The listener's thread stores a refusal before it counts it.
        eventually(lambda: run.publisher.unserved == {"rejected": 1}, 20)
        assert selector.statistics.unserved["rejected"] == 3
    for logger, begins in (
        ("unserved", "the sidecar does not serve version"),
        ("listeners", "a sidecar does not serve"),
    ):
        told = [r.getMessage() for r in caplog.records if r.name.endswith(logger)]
        assert len(told) == 1, told
        assert told[0].startswith(begins)
        assert "parameter logit_scale is NaN or infinite" in told[0]
        assert "training goes on" in told[0]
    run.publish(TwoTower(207))


class Writer:
    """What a sidecar would write, by hand."""

    def __init__(self, url, run):
        self.keys, self.store = Keys(run), open_store(url)

    def put(self, value: bytes, slot=0):
        self.store.put_all([(self.keys.report(slot), memoryview(value))], 60)

    def report(self, slot=0, **fields):
        at = {"reported_at": time.time(), "sidecar": f"s{slot}"}
        self.put(encode_report(weights_pb2.SidecarReport(**at | fields)), slot)

    def learner(self, shapes) -> str:
        name, value = encode_learner(shapes)
        self.store.put_all([(self.keys.learner(name), memoryview(value))], 60)
        return name


@pytest.fixture
def writer(redis_url, run_name):
    return Writer(redis_url, run_name)


@pytest.fixture
def listeners(redis_url, run_name):
    return Listeners(open_store(redis_url), Keys(run_name), None)


HOSTILE = {
    "no JSON": b"\x80\x04pickle",
    "deep": b'{"sidecar":' * 5000,
    "numbers": b"[1, 2]",
    "long": b"x" * (MAX_REPORT_BYTES + 1),
    "old": encode_report(weights_pb2.SidecarReport(sidecar="s", reported_at=1.0, state="rejected")),
    "never": b'{"sidecar": "s", "state": "rejected", "reported_at": "NaN"}',
    "learner of another name": b'{"sidecar": "s", "learner": "../../etc/passwd", "reported_at": %d}' % time.time(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_reports_are_not_believed(writer, listeners, caplog, case):
    writer.put(HOSTILE[case])
    listeners.hear()
    assert (listeners.refusals, listeners.learners, listeners.unserved, caplog.records) == (0, (), {}, [])


def test_reports_that_paint_terminals_are_escaped_and_cut(writer, listeners, caplog):
    writer.report(state="rejected", version=1, reason="\x1b[2J\n" * 400)
    listeners.hear()
    [told] = caplog.records
    assert told.getMessage().isprintable()
    assert len(told.getMessage()) < 2000


def test_many_reasons_are_not_told_for_ever(writer, listeners, caplog):
    for number in range(200):
        writer.report(number % SLOTS, state="rejected", version=number, reason="x" * number)
        listeners.hear()
    assert len(caplog.records) == 64
    assert listeners.refusals == 200


def test_reasons_that_differ_in_their_numbers_are_told_once(writer, listeners, caplog):
    for number in range(1, 4):
        writer.report(state="rejected", version=number, reason=f"version {number} is no. {10 * number}")
        listeners.hear()
    assert (len(caplog.records), listeners.refusals) == (1, 3)


def test_a_report_of_a_later_release_is_understood(writer, listeners):
    report = {"sidecar": "s", "state": "rejected", "version": 1, "reported_at": time.time(), "told_since": "0.9"}
    writer.put(json.dumps(report).encode())
    listeners.hear()
    assert (listeners.unserved, listeners.refusals) == ({"rejected": 1}, 1)


def test_what_a_learner_needs_must_have_its_digest(writer, listeners):
    name = writer.learner({"w": (1, 2)})
    assert decode_learner(name, encode_learner({"w": (1, 2)})[1]) == {"w": (1, 2)}
    writer.report(learner=name)
    listeners.hear()
    assert listeners.learners == ({"w": (1, 2)},)
    writer.store.put_all([(writer.keys.learner("0" * 64), memoryview(b"{}"))], 60)
    writer.report(1, learner="0" * 64)
    listeners.hear()
    assert listeners.learners == (), "one of them is not known, and might be served"


def test_a_model_is_refused_only_if_it_fits_no_learner(writer, redis_url, run_name):
    writer.report(0, learner=writer.learner({"other": (1,)}))
    with WeightPublisher(redis_url, run_name) as publisher:
        publisher.publish(0, {"w": torch.zeros(2)})
        assert not publisher.flush()
        assert "1 of 1 parameters are missing: other; another came instead: w" in publisher.last_error
        writer.report(1, learner=writer.learner({"w": (2,)}))
        publisher._next_hearing = 0.0
        publisher.publish(1, {"w": torch.zeros(2)})
        eventually(lambda: publisher.publish(2, {"w": torch.zeros(2)}) and publisher.flush(), 20)
        assert publisher.published


def test_a_store_that_sidecars_may_not_write_costs_nothing_but_the_report(redis_url, run_name, monkeypatch):
    versions = Versions(Version(0, 0, Dated(0.0), b""))
    reporter, asked = Reporter(redis_url, run_name, versions, {"w": (1,)}), []

    def refuse(*_):
        asked.append(1)
        raise StoreRefused("NOPERM")

    monkeypatch.setattr(reporter._store, "renew", refuse)
    for _ in range(5):
        reporter.tell()
    assert asked == [1]


def test_a_report_expires_and_follows_the_state(redis_url, run_name):
    client, keys = redis.Redis.from_url(redis_url), Keys(run_name)
    versions = Versions(Version(0, 0, Dated(0.0), b""))
    reporter = Reporter(redis_url, run_name, versions, {"w": (1,)})
    reporter.tell()
    [slot] = [slot for slot in range(SLOTS) if client.exists(keys.report(slot))]
    first = client.get(keys.report(slot))
    reporter.tell()
    assert client.get(keys.report(slot)) == first, "it is not time"
    versions.report(SyncState.REJECTED, 3, "version 3: no")
    reporter.tell()
    assert b"version 3: no" in client.get(keys.report(slot))
    assert all(0 < client.ttl(key) <= 90 for key in client.scan_iter(f"*{{{run_name}}}*"))


def test_a_report_tells_what_the_learner_needs_and_what_is_served_instead(redis_url, run_name, listeners, caplog):
    versions = Versions(Version(0, 0, 0.0, b""))
    versions.swap(Version(4, 1, 1.0, b""))
    versions.report(SyncState.REJECTED, 5, "it is odd")
    Reporter(redis_url, run_name, versions, {"w": (1, 2)}).tell()
    listeners.hear()
    assert listeners.learners == ({"w": (1, 2)},)
    (told,) = caplog.messages
    assert told.startswith("a sidecar does not serve version 5 of these weights (rejected), but version 4; training")


def test_what_counts_as_unserved():
    versions = Versions(Version(0, 0, Dated(0.0), b""))
    for state in (SyncState.OFF, SyncState.WAITING, SyncState.CURRENT):
        versions.report(state, 0)
        assert versions.unserved() is None
    versions.swap(Version(4, 1, Dated(1.0), b""))
    versions.report(SyncState.DISCONNECTED, None, "no answer")
    assert (versions.unserved().version, versions.unserved().reason) == (0, "no answer")
    versions.report(SyncState.CURRENT, 4)
    versions.pin(4)
    assert versions.unserved() is None, "the pinned one is the newest"
    versions.report(SyncState.PINNED, 5)
    assert (versions.unserved().version, versions.unserved().reason) == (5, "version 4 is pinned")
