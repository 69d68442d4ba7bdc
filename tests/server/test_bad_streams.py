"""Streams that break the rules, and clients that take a permit and keep it."""

import itertools
import time

import grpc
import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.processes import SlowClient
from support.refusals import EXHAUSTED, INVALID, assert_goes_on
from support.wire import error_info, losses, some_losses


def test_stream_without_messages_or_selection(limited):
    selection = some_losses().messages()[0].selection
    for messages in ([], [pb.SelectRequest(payload=b"x")], [pb.SelectRequest(), pb.SelectRequest(selection=selection)]):
        error = limited.refuse(messages)
        assert (error.code().name, error.details()) == (
            INVALID,
            "selection is missing; the first message must carry it",
        )
        assert error_info(error)["field"] == "selection"
    assert_goes_on(limited)


def test_selection_sent_twice(limited):
    first = some_losses().messages()[0]
    error = limited.refuse([pb.SelectRequest(selection=first.selection), first])
    assert (error.code().name, error.details()) == (
        INVALID,
        "selection is set again; only the first message may carry it",
    )
    assert_goes_on(limited)


def test_endless_stream_is_cut_at_the_declared_length(limited):
    first = some_losses().messages()[0]
    sent = itertools.count()

    def messages():
        yield first
        for _ in range(10_000):
            next(sent)
            yield pb.SelectRequest(payload=bytes(100_000))

    error = limited.refuse(messages())
    assert (error.code().name, error.details()) == (INVALID, "payload is over 100160 bytes; payload_bytes says 160")
    assert next(sent) < 10_000
    assert_goes_on(limited)


def test_message_over_4_mib(plain_server):
    request = losses(np.zeros(1_100_000, np.float32), np.zeros(1_100_000, np.float32))
    request.cut = 5 << 20
    error = plain_server.refuse(request)
    assert error.code().name == EXHAUSTED
    assert "4194304" in error.details()
    assert_goes_on(plain_server)


def test_later_message_over_4_mib(plain_server):
    request = losses(np.zeros(1_000_000, np.float32), np.zeros(1_000_000, np.float32))
    first, second = request.messages()[0], pb.SelectRequest(payload=bytes(5 << 20))
    error = plain_server.refuse([first, second])
    assert error.code().name == EXHAUSTED
    assert "4194304" in error.details()
    assert_goes_on(plain_server)


@pytest.mark.parametrize(
    "messages",
    [
        [b"\xff\xff\xff\xff"],
        [some_losses(policy="QQQQ").messages()[0].SerializeToString().replace(b"QQQQ", b"\xff\xff\xff\xff")],
        [pb.SelectRequest(selection=some_losses(payload_bytes=9).selection).SerializeToString(), b"\xff"],
    ],
    ids=["no message", "policy that is not UTF-8", "broken later message"],
)
def test_bytes_that_are_no_message(limited, messages):
    call = limited.channel.stream_unary("/selector.v1.SelectorService/Select")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(messages), timeout=10)
    assert caught.value.code().name == INVALID
    assert caught.value.details() == "message is unreadable; must be a selector.v1.SelectRequest"
    assert_goes_on(limited)


def test_overload_is_refused_at_once_and_ends_with_its_cause(sidecar):
    server = sidecar({"max_pending_requests": 2, "max_inflight_bytes": 500, "receive_seconds": 600})
    first = SlowClient(server)
    server.wait_pending(1)
    # Bytes: 160 are under way.
    error = server.refuse(some_losses(45))
    assert (error.code().name, error.details()) == (EXHAUSTED, "payload bytes of all requests is 532; at most 500")
    assert error_info(error)["reason"] == "OVERLOADED"
    assert_goes_on(server)
    # Requests: two are under way.
    second = SlowClient(server)
    server.wait_pending(2)
    started = time.monotonic()
    error = server.refuse(some_losses())
    assert time.monotonic() - started < 15, "refused, not queued: its deadline is 30 s away"
    assert (error.code().name, error.details()) == (EXHAUSTED, "pending requests is 2; at most 2")
    assert error_info(error)["reason"] == "OVERLOADED"
    assert server.health() == "SERVING"
    # A permit comes back when its request is answered, when its client leaves, and when its deadline passes.
    assert len(first.finish().indices) == 4
    assert_goes_on(server)
    second.leave()
    server.wait_pending(0)
    late = SlowClient(server, timeout=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        late.call.result()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_pending(0)
    late.leave()
    assert server.metrics()("selector_inflight_bytes") == 0
    assert_goes_on(server)


def test_a_client_that_goes_silent_loses_its_permit(limited):
    started = time.monotonic()
    slow = SlowClient(limited)
    with pytest.raises(grpc.RpcError) as caught:
        slow.call.result(timeout=20)
    error = caught.value
    slow.leave()
    assert 0.9 < time.monotonic() - started < 10
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert error.details() == "stream is silent; the next message must come within 1.0 s"
    assert error_info(error)["reason"] == "TOO_LATE"
    assert_goes_on(limited)
