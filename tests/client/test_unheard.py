"""What the client makes of replies that say that the newest weights are not served."""

import asyncio
import pickle
from concurrent import futures

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from selector_client import AsyncSelector, Selector
from selector_client.metrics import export
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

VALUES = np.random.default_rng(0).random((2, 50), dtype=np.float32)
SETTINGS = {"policy": "independent", "sub_batch_size": 10}


class Saying(rpc.SelectorServiceServicer):
    """Answers with one of `unserved` after the other, and then with none."""

    def __init__(self, unserved):
        self.unserved = list(unserved)

    def Select(self, request_iterator, context):
        next(request_iterator)
        unserved = self.unserved.pop(0) if self.unserved else None
        return pb.SelectResponse(indices=range(10), unserved_weights=unserved)


@pytest.fixture
def saying():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")

    def start(*unserved) -> str:
        rpc.add_SelectorServiceServicer_to_server(Saying(unserved), server)
        server.start()
        return f"127.0.0.1:{port}"

    yield start
    server.stop(0).wait()


def rejected(version, reason=None):
    reason = f"version {version}: parameter a is missing" if reason is None else reason
    return pb.UnservedWeights(version=version, state=pb.SYNC_STATE_REJECTED, reason=reason)


def test_each_kind_of_reason_is_told_once_and_all_are_counted(saying, caplog):
    lost = pb.UnservedWeights(state=pb.SYNC_STATE_DISCONNECTED, reason="no answer")
    pinned = pb.UnservedWeights(version=9, state=pb.SYNC_STATE_PINNED, reason="version 8 is pinned")
    address = saying(rejected(7), rejected(8), lost, pinned, rejected(9), None)
    registry = CollectorRegistry()
    with Selector(address, **SETTINGS) as selector:
        export(selector=selector, registry=registry)
        for _ in range(6):
            assert selector.select_losses(*VALUES).fallback == ""
        assert selector.statistics.unserved == {"rejected": 3, "disconnected": 1, "pinned": 1}
        assert pickle.loads(pickle.dumps(selector)).statistics.unserved["rejected"] == 3
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "the sidecar does not serve version 7 of the weights (rejected), but older ones; training goes on: "
        "version 7: parameter a is missing",
        "the sidecar does not serve the newest weights (disconnected), but older ones; training goes on: no answer",
        "the sidecar does not serve version 9 of the weights (pinned), but older ones; training goes on: "
        "version 8 is pinned",
    ]
    assert registry.get_sample_value("selector_client_unserved_total", {"state": "rejected"}) == 3


def test_counters_begin_at_zero():
    registry = CollectorRegistry()
    with Selector("127.0.0.1:1") as selector:
        export(selector=selector, registry=registry)
    for state in ("rejected", "disconnected", "pinned"):
        assert registry.get_sample_value("selector_client_unserved_total", {"state": state}) == 0


def test_the_asyncio_twin_hears_it_too(saying, caplog):
    address = saying(rejected(1), rejected(2))

    async def select():
        async with AsyncSelector(address, **SETTINGS) as selector:
            for _ in range(2):
                await selector.select_losses(*VALUES)
            return selector.statistics.unserved["rejected"]

    assert asyncio.run(select()) == 2
    assert len(caplog.records) == 1


def test_a_reason_that_paints_a_terminal_is_escaped(saying, caplog):
    with Selector(saying(rejected(1, "\x1b[2J" * 5000)), **SETTINGS) as selector:
        selector.select_losses(*VALUES)
    [told] = caplog.records
    assert told.getMessage().isprintable()
    assert len(told.getMessage()) < 4000
