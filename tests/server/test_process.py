"""The process: configuration, health, reflection, metrics, draining. Real processes."""

import signal
import socket
import threading

import grpc
import numpy as np
import pytest
import selector_proto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.weights.link import masked
from support.model import samples
from support.processes import READY, SlowClient, eventually, listens
from support.wire import losses, raw, some_losses

# Life and death


def watch(server, statuses) -> threading.Thread:
    """Follows the server's health into `statuses` until the stream ends."""

    def follow():
        request = health_pb2.HealthCheckRequest(service=READY)
        try:
            for reply in health_pb2_grpc.HealthStub(server.channel).Watch(request, timeout=60):
                statuses.append(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
        except grpc.RpcError:
            return

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_sigterm_lets_a_running_request_finish_and_waits_for_nothing_else(sidecar):
    """A client that watches health, as Kubernetes-aware ones do, does not keep the process."""
    server, statuses = sidecar({"drain_seconds": 300}, new=True), []
    watcher, slow = watch(server, statuses), SlowClient(server)
    server.wait_pending(1)
    eventually(lambda: statuses == ["SERVING"])
    server.signal(signal.SIGTERM)
    eventually(lambda: statuses == ["SERVING", "NOT_SERVING"])
    error = server.refuse(some_losses())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "server is draining" in error.details()
    assert server.process.poll() is None, "it waits for the running request"
    assert len(slow.finish().indices) == 4
    assert server.process.wait(15) == 0
    watcher.join(10)
    assert server.text.endswith("stopped\n")
    assert "Traceback" not in server.text


def test_drain_is_bounded(sidecar):
    server = sidecar({"drain_seconds": 0.5}, new=True)
    slow = SlowClient(server)
    server.wait_pending(1)
    server.signal(signal.SIGINT)
    with pytest.raises(grpc.RpcError) as caught:
        slow.call.result(timeout=20)
    assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    slow.leave()
    assert server.process.wait(20) == 0


def test_a_second_signal_cuts_the_drain_short(sidecar):
    server = sidecar({"drain_seconds": 300}, new=True)
    slow = SlowClient(server)
    server.wait_pending(1)
    server.signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.text)
    server.signal(signal.SIGTERM)
    assert server.process.wait(30) == 0  # it would drain for 300 s
    assert "second signal" in server.text
    slow.leave()


# Health, reflection, metrics


def test_weights_have_no_health_where_none_are_synced(plain_server):
    assert [plain_server.health(name) for name in ("", READY, "weights")] == ["SERVING", "SERVING", "NOT_FOUND"]


def test_reflection_lists_and_describes_the_services(plain_server):
    database = ProtoReflectionDescriptorDatabase(plain_server.channel)
    names = set(database.get_services())
    assert names == {
        READY,
        "selector.v1.AdminService",
        "selector.v1.InspectionService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    described = database.FindFileContainingSymbol(READY)
    assert [method.name for method in described.service[0].method] == [
        "Select",
        "Shortlist",
        "GetServerInfo",
        "GetWeightsStatus",
    ]


def test_metrics_count_what_happened(server):
    before = server.metrics()
    pixels, ids = samples(40)
    server.select(raw(pixels, ids))
    server.select(raw(pixels, ids))
    server.refuse(some_losses(policy="nonsense"))
    server.info()
    after = server.metrics()

    def grown(name, **labels):
        return after(name, **labels) - (before(name, **labels) or 0)

    assert grown("selector_requests_total", method="Select", code="OK") == 2
    assert grown("selector_requests_total", method="Select", code="INVALID_ARGUMENT") == 1
    assert grown("selector_requests_total", method="GetServerInfo", code="OK") == 1
    assert grown("selector_candidates_total") == 80
    assert grown("selector_picks_total") == 16
    assert grown("selector_super_batch_candidates_sum") == 80
    assert grown("selector_request_duration_seconds_count", method="Select") == 3
    for stage in ("receive", "queue", "preprocess", "encode_learner", "encode_reference", "sample"):
        assert grown("selector_stage_duration_seconds_count", stage=stage) == 2
        assert 0 < grown("selector_stage_duration_seconds_sum", stage=stage) < 30
    objectives = [after("selector_objective_nats", of=of) for of in ("picks", "uniform")]
    assert None not in objectives
    assert objectives[0] != objectives[1]
    assert after("selector_pending_requests") == after("selector_inflight_bytes") == 0
    assert after("selector_worker_up") == 1
    assert after("selector_weights_version") == 0
    assert after("selector_weights_age_seconds") >= 0
    build = {"version": selector_proto.__version__, "device": "cpu", "provider": "CPUExecutionProvider"}
    assert after("selector_build_info", **build) == 1


# Configuration


def test_flags_win_over_the_environment_and_that_over_the_file(sidecar, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("max_width = 11\nmax_super_batch = 11\nmax_text_bytes = 11\n")
    environment = {"SELECTOR_MAX_SUPER_BATCH": "22", "SELECTOR_MAX_TEXT_BYTES": "22"}
    server = sidecar({"config": file, "max_text_bytes": 33, "metrics_listen": ""}, env=environment)
    info = server.info()
    limits = info.limits
    assert (limits.max_width, limits.max_super_batch, limits.max_text_bytes) == (11, 22, 33)
    assert (info.config["max_width"], info.config["max_text_bytes"]) == ("11", "33")
    assert limits.max_pending_requests == 16, "the default"
    assert not listens(server.metrics_port), "no metrics when told so"
    assert "at most 22 candidates" in server.refuse(losses(np.zeros(23, np.float32))).details()


SECRET = "hunter2secret"


def test_the_password_of_redis_is_never_shown(sidecar, bundles, redis_url):
    address = redis_url.partition("://")[2]
    url = f"redis://someone:{SECRET}@{address}/0"
    server = sidecar(bundles.flags | {"redis": url, "log_level": "debug"})
    status = eventually(lambda: (s := server.status()).last_error and s)
    info = server.info()
    assert status.state == pb.SYNC_STATE_DISCONNECTED
    assert status.source == info.config["redis"] == f"redis://{address}/0"
    for text in (server.text, str(status), str(info)):
        assert SECRET not in text
        assert "someone" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        (f"rediss://me:{SECRET}@host:1/2", "rediss://host:1/2"),
        (f"redis://:{SECRET}@[::1]:1", "redis://[::1]:1"),
        (f"redis://:x%40{SECRET}@host", "redis://host"),
        (f"redis://:x@{SECRET}@host", "redis://host"),
        (f"redis://host/0?username=me&password=x@{SECRET}", "redis://host/0"),
        (f"unix:///tmp/redis.sock?password={SECRET}", "unix:///tmp/redis.sock"),
        (f"unix://me:{SECRET}@/tmp/redis.sock", "unix:///tmp/redis.sock"),
        (f"redis://:x/{SECRET}@host", "***"),
        (f"redis://:x?{SECRET}@host", "***"),
        (f"redis://:x#{SECRET}@host", "***"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    assert masked(url) == shown


def test_the_metrics_port_is_bound_where_asked(plain_server):
    with socket.create_connection(("127.0.0.1", plain_server.metrics_port), timeout=5):
        pass
