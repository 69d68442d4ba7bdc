"""The admin service and its command: what became of the versions, and staying at one of them."""

import json
import time

import grpc
import pytest
import redis
from selector_proto.v1 import admin_pb2, admin_pb2_grpc
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.layout import Keys
from selector_tools import cli
from support.model import TwoTower
from support.processes import eventually, free_port
from support.trainers import request
from support.wire import error_info

from selector_server.weights.history import KEPT, Event, History, Outcome

SERVED, REFUSED, INCOMPLETE = 1, 2, 3


def command(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `selector weights`."""
    try:
        code = cli.main(["weights", *map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def events(trainer) -> list[tuple]:
    return [(e.version, e.outcome) for e in trainer.history().events]


# Pinning


def test_a_pinned_version_stays_through_publications_until_it_is_unpinned(trainer):
    first, second = trainer.serve(1, step=10), trainer.serve(2, step=20)
    pinned = trainer.pin(first)
    assert (pinned.version, pinned.trainer_step) == (first, 10)
    assert list(trainer.select().indices) == trainer.picks_of(1), "switched to at once"
    third = trainer.publish(TwoTower(3), step=30)
    status = eventually(lambda: (s := trainer.server.status()).newest_version == third and s)
    time.sleep(0.3)
    assert (status.serving.version, status.state) == (first, pb.SYNC_STATE_PINNED)
    assert status.last_error == f"version {first} is pinned"
    assert trainer.select().weights.version == first
    assert trainer.server.health("weights") == "SERVING"
    eventually(lambda: trainer.server.metrics()("selector_weights_pinned") == 1)
    assert trainer.server.metrics()("selector_weights_newest_version") == third
    assert (trainer.history().pinned_version, list(trainer.history().pinnable_versions)) == (first, [0, first, second])
    assert trainer.unpin().version == second, "the last one taken, until the newest is"
    eventually(lambda: trainer.serving() == third, 2)
    assert list(trainer.select().indices) == trainer.picks_of(3)
    status = trainer.server.status()
    assert (status.state, status.last_error) == (pb.SYNC_STATE_CURRENT, "")
    assert not trainer.history().HasField("pinned_version")


def test_current_previous_and_the_bundles_weights_can_be_pinned_one_after_another(trainer):
    previous, current = trainer.serve(4), trainer.serve(5)
    for version, seed in ((current, 5), (0, None), (previous, 4), (current, 5)):
        assert trainer.pin(version).version == version
        reply = trainer.select()
        assert (reply.weights.version, list(reply.indices)) == (version, trainer.picks_of(seed))
    eventually(lambda: trainer.server.status().last_error == "", message=lambda: "the newest version is the pinned one")
    assert trainer.server.status().state == pb.SYNC_STATE_PINNED
    trainer.unpin()
    assert trainer.unpin().version == current, "a second time changes nothing"
    eventually(lambda: trainer.server.status().state == pb.SYNC_STATE_CURRENT)


def test_versions_that_are_not_in_memory_cannot_be_pinned(trainer):
    gone, previous, current = (trainer.serve(6 + i) for i in range(3))
    for version in (gone, current + 1, 2**64 - 1):
        with pytest.raises(grpc.RpcError) as raised:
            trainer.pin(version)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        info = error_info(raised.value)
        assert (info["field"], info["value"]) == ("version", str(version))
        assert info["limit"] == f"only versions in memory can be pinned: 0, {previous}, {current}"
    assert trainer.server.status().state == pb.SYNC_STATE_CURRENT
    with pytest.raises(grpc.RpcError) as raised:
        trainer.admin.PinWeights(admin_pb2.PinWeightsRequest(), timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details().startswith("version is missing")


def test_a_wait_says_that_a_pin_is_in_its_way(trainer):
    version = trainer.serve(9)
    trainer.pin(0)
    wanted = request(min_weights_version=version, when_stale=pb.STALENESS_POLICY_WAIT)
    error = trainer.server.refuse(wanted, timeout=1)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "version 0 is served; version 0 is pinned; waited" in error.details()


def test_a_server_without_a_learner_has_no_weights_to_pin(plain_server):
    stub = admin_pb2_grpc.AdminServiceStub(plain_server.channel)
    for call in (
        lambda: stub.ListWeightsHistory(admin_pb2.ListWeightsHistoryRequest(), timeout=10),
        lambda: stub.PinWeights(admin_pb2.PinWeightsRequest(version=0), timeout=10),
        lambda: stub.UnpinWeights(admin_pb2.UnpinWeightsRequest(), timeout=10),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "needs a learner" in raised.value.details()


# History


def test_the_history_tells_what_was_served_refused_and_incomplete(trainer, redis_url):
    before = time.time()
    good, refused = trainer.serve(10, step=100), trainer.refused(step=200)
    event = trainer.history().events[-1]
    assert (event.version, event.trainer_step, event.outcome, event.times) == (refused, 200, REFUSED, 1)
    assert event.reason.startswith("parameter logit_scale is NaN or infinite")
    assert before - 1 < event.at < time.time() + 1
    assert events(trainer)[-2:] == [(good, SERVED), (refused, REFUSED)]
    # A pointer to a version that is not there is tried again and again: one event.
    missing = refused + 1
    redis.Redis.from_url(redis_url).set(Keys("shared").pointer, missing)
    event = eventually(lambda: (e := trainer.history().events[-1]).times > 1 and e)
    assert (event.version, event.outcome, event.HasField("trainer_step")) == (missing, INCOMPLETE, False)
    assert "missing" in event.reason
    assert events(trainer)[-3:] == [(good, SERVED), (refused, REFUSED), (missing, INCOMPLETE)]
    again = trainer.serve(11)
    assert events(trainer)[-1] == (again, SERVED)
    trainer.pin(good)
    assert trainer.history().events[-1].reason == "pinned"


def test_the_history_is_bounded_and_counts_what_happens_again_at_once():
    history = History()
    for version in range(100):
        history.add(Event(version, 0, Outcome.SERVED))
    assert [event.version for event in history.events()] == list(range(100 - KEPT, 100))
    for at in (1.0, 2.0, 3.0):
        history.add(Event(7, None, Outcome.INCOMPLETE, "half", at))
    assert len(history.events()) == KEPT
    assert history.events()[-1] == Event(7, None, Outcome.INCOMPLETE, "half", 3.0, 3)


# Its own address


def test_an_admin_address_serves_what_an_operator_asks_and_the_other_one_the_rest(strict, admin_address):
    server, address = strict, admin_address
    ask = admin_pb2.ListWeightsHistoryRequest()
    with pytest.raises(grpc.RpcError) as raised:
        admin_pb2_grpc.AdminServiceStub(server.channel).ListWeightsHistory(ask, timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(address) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ListWeightsHistory(ask, timeout=10)
        assert [(e.version, e.outcome, e.reason) for e in answer.events] == [(0, SERVED, "the bundle's own weights")]
        data = type(server.stub)(channel)
        with pytest.raises(grpc.RpcError) as raised:
            data.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert data.GetWeightsStatus(pb.GetWeightsStatusRequest(), timeout=10).state == pb.SYNC_STATE_OFF
        # Without a source of weights there is one version to pin.
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        stub.PinWeights(admin_pb2.PinWeightsRequest(version=0), timeout=10)
        assert server.status().state == pb.SYNC_STATE_PINNED
        stub.UnpinWeights(admin_pb2.UnpinWeightsRequest(), timeout=10)
        assert server.status().state == pb.SYNC_STATE_OFF


# The command


def test_the_command_shows_pins_and_unpins(trainer, capsys):
    first, second = trainer.serve(12, step=5), trainer.serve(13, step=6)
    address = trainer.server.address
    code, out, _ = command(capsys, "status", address)
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert shown["serving"].startswith(f"version {second} of step 6, ")
    assert (shown["newest"], shown["state"], shown["reason"]) == (str(second), "current", "-")
    assert command(capsys, "pin", first, address)[:2] == (0, f"pinned; serving version {first} of step 5\n")
    assert "pinned" in command(capsys, "status", address)[1]
    code, out, _ = command(capsys, "history", address)
    header, *rows, foot = out.splitlines()
    assert (code, header.split()) == (0, ["TIME", "VERSION", "STEP", "OUTCOME", "TIMES", "REASON"])
    assert rows[-1].split()[2:] == [str(first), "5", "served", "1", "pinned"]
    assert foot == f"pinned: {first}; can be pinned: 0, {first}, {second}"
    assert command(capsys, "unpin", address)[:2] == (0, f"not pinned; serving version {second} of step 6\n")
    code, out, _ = command(capsys, "pin", 0, address, "--json")
    assert (code, json.loads(out)) == (0, {"version": "0", "trainer_step": "0"})
    assert json.loads(command(capsys, "status", address, "--json")[1])["state"] == "SYNC_STATE_PINNED"
    assert json.loads(command(capsys, "history", address, "--json")[1])["pinned_version"] == "0"


def test_the_commands_mistakes_are_one_line(trainer, strict, capsys):
    address = trainer.server.address
    for arguments, status, named in (
        (["pin", 10**6, address], 1, "FAILED_PRECONDITION: version is 1000000; only versions in memory"),
        (["status", f"127.0.0.1:{free_port()}"], 1, "UNAVAILABLE: "),
        (["unpin", strict.address], 1, "UNIMPLEMENTED: not served at this address; the admin service may have its own"),
        (["pin", "newest", address], 2, "'newest' is not a version"),
        (["pin", "-1", address], 2, "-1"),
        (["pin", address], 2, "is not a version"),
        (["pin", 0], 2, "required: address"),
        (["history"], 2, "required: address"),
        ([], 2, "required: ACTION"),
        (["status", address, "--timeout", "nan"], 2, "'nan' is not a time"),
    ):
        code, out, err = command(capsys, *arguments)
        assert (code, out, len(err.splitlines())) == (status, "", 1), arguments
        assert named in err
