"""Past what a server takes at once: refused at the header, at once, and cut off. Real processes."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from selector_client import AsyncSelector
from selector_client.errors import RemoteError
from selector_proto.v1 import selector_pb2 as pb
from support.processes import SlowClient, eventually
from support.wire import Request, error_info, retry_seconds, some_losses

CHUNK = bytes(1 << 20)
CHUNKS = 200


@pytest.fixture
def full(sidecar):
    """A server whose only permit is taken."""
    server = sidecar({"max_pending_requests": 1})
    slow = SlowClient(server)
    server.wait_pending(1)
    yield server
    slow.leave()


def test_a_request_is_refused_before_its_payload_is_sent(full):
    sent, go_on = [], threading.Event()

    def header_then_nothing():
        yield pb.SelectRequest(selection=pb.Selection(payload_bytes=len(CHUNK)))
        go_on.wait(60)
        sent.append("payload")
        yield pb.SelectRequest(payload=CHUNK)

    error = full.refuse(header_then_nothing())
    assert not sent
    go_on.set()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error)["reason"] == "OVERLOADED"


def test_a_client_that_sends_on_is_cut_off(full):
    sent = []

    def chunks():
        yield pb.SelectRequest(selection=pb.Selection(payload_bytes=CHUNKS * len(CHUNK)))
        for number in range(CHUNKS):
            sent.append(number)
            yield pb.SelectRequest(payload=CHUNK)

    assert full.refuse(chunks()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    time.sleep(0.5)
    assert len(sent) < CHUNKS / 4, "the rest is not read to be thrown away"


def test_few_wait_for_the_reply_of_another_with_their_id(sidecar):
    """As many as a client's retries; what they have sent counts as under way."""
    server = sidecar({"max_inflight_bytes": 8 << 20})
    request = some_losses(400_000, request_id="again")
    request.cut = 4 << 20  # all of its 3.2 MB are in the first message
    slow = SlowClient(server, request)
    server.wait_pending(1)
    size = len(request.payload)
    waits = server.stub.Select.future(iter(request.messages()), timeout=30)
    eventually(lambda: server.metrics()("selector_inflight_bytes") == 2 * size)
    assert error_info(server.refuse(request))["limit"] == f"at most {8 << 20}"
    assert server.metrics()("selector_rejected_total", reason="bytes") == 1
    assert len(slow.finish().indices) == len(waits.result(30).indices)
    assert waits.result().repeated
    eventually(lambda: server.metrics()("selector_inflight_bytes") == 0)

    small = some_losses(request_id="and again")
    slow = SlowClient(server, small)
    server.wait_pending(1)
    last = [server.stub.Select.future(iter(small.messages()), timeout=30) for _ in range(6)]
    eventually(lambda: sum(call.done() for call in last) == 4)
    assert [retry_seconds(call.exception()) > 0 for call in last if call.done()] == [True] * 4
    assert server.metrics()("selector_rejected_total", reason="pending") == 4
    slow.finish()
    assert sorted(call.code().name for call in last) == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 4


def test_the_time_that_a_refusal_takes_is_measured_from_the_first_message(full):
    def late():
        time.sleep(1.0)
        yield from some_losses().messages()

    def measured(what):
        return full.metrics()(f"selector_reject_duration_seconds_{what}")

    assert measured("count") == 0
    for messages in (late(), late(), some_losses(policy="nonsense").messages()):
        full.refuse(messages)
    eventually(lambda: measured("count") == 3)  # counted once the status is on its way
    assert 0 < measured("sum") < 2.0, "what clients wait before they begin is not the server's"


def test_only_refusals_by_the_first_message_for_what_is_under_way_are_measured(sidecar, bundles):
    """What files grow to is known when they have come: a refusal then says how long the upload took."""
    limit = 1 << 20
    server = sidecar(bundles.flags | {"max_inflight_bytes": limit})
    server.select(some_losses())
    server.refuse(some_losses(policy="nonsense"))
    most = some_losses()
    most.selection.payload_bytes = limit - 10_000
    slow = SlowClient(server, most)
    server.wait_pending(1)
    files = Request()
    files.selection.samples.encoded_images.CopyFrom(files.pack([b""] * 60))
    files.selection.samples.tokens.CopyFrom(files.add(np.ones((60, 2), np.int32)))
    error = server.refuse(files)
    assert error_info(error)["reason"] == "OVERLOADED"
    assert "bytes of all requests, decoded" in error.details()
    assert server.metrics()("selector_rejected_total", reason="bytes") == 1
    assert server.metrics()("selector_reject_duration_seconds_count") == 0
    slow.leave()


def test_an_async_client_never_sees_a_status_that_grpc_lost(full):
    """Refused while it sends, grpc.aio sometimes says INTERNAL instead of what the server said."""
    values = np.zeros((2, 1 << 20), np.float32)

    async def reasons():
        async with AsyncSelector(full.address, policy="independent", on_error="raise", timeout=30) as selector:
            selector._session.retry = lambda pending, error: None

            async def one():
                with pytest.raises(RemoteError) as caught:
                    await selector.select_losses(*values)
                return caught.value.reason

            return {reason for _ in range(20) for reason in await asyncio.gather(*(one() for _ in range(4)))}

    assert asyncio.run(reasons()) <= {"resource_exhausted", "unavailable"}
