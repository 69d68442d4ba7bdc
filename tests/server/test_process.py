"""The process: start and its mistakes, configuration, health, reflection, metrics, draining. Real processes."""

import json
import logging
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import selector_proto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from selector_proto import safetensors
from selector_proto.safetensors import TensorView
from selector_proto.v1 import selector_pb2 as pb
from selector_tools import cli
from support.model import TwoTower, samples, source
from support.processes import READY, SlowClient, eventually, free_port, listens, run_serve
from support.wire import losses, raw, some_losses

from selector_server.config import mask_url
from selector_server.encoding import bundle
from selector_server.encoding.export import export_reference

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
    server, statuses = sidecar({"drain_seconds": 300}), []
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
    server = sidecar({"drain_seconds": 0.5})
    slow = SlowClient(server)
    server.wait_pending(1)
    server.signal(signal.SIGINT)
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        slow.call.result(timeout=10)
    assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    slow.leave()
    assert server.process.wait(10) == 0
    assert time.monotonic() - started < 6


def test_a_second_signal_cuts_the_drain_short(sidecar):
    server = sidecar({"drain_seconds": 300})
    slow = SlowClient(server)
    server.wait_pending(1)
    server.signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.text)
    server.signal(signal.SIGTERM)
    started = time.monotonic()
    assert server.process.wait(10) == 0
    assert time.monotonic() - started < 8
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
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    described = database.FindFileContainingSymbol(READY)
    assert [method.name for method in described.service[0].method] == ["Select", "GetServerInfo", "GetWeightsStatus"]


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
    assert mask_url(url) == shown


# Mistakes at the start


def one_line(stderr) -> str:
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    return stderr


def copy_of(source: Path, target: Path, **changed) -> Path:
    """A bundle with changed files (by stem) whose digests are right, or fields of the manifest."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for name, value in changed.items():
        file = next((f for f in manifest["files"] if Path(f).stem == name), None)
        if file is None or not isinstance(value, bytes):
            manifest[name] = value
        else:
            (target / file).write_bytes(value)
            manifest["files"][file] = bundle.digest_of(target / file)
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return target


def weights_file(path: Path, change) -> bytes:
    """The bundle's weights after `change` to a mapping from name to float32 array."""
    views = safetensors.decode(memoryview((path / "weights.safetensors").read_bytes()))
    arrays = {name: np.frombuffer(v.data, "<f4").reshape(v.shape).copy() for name, v in views.items()}
    change(arrays)
    views = {name: TensorView("F32", a.shape, memoryview(a.reshape(-1).view(np.uint8))) for name, a in arrays.items()}
    return b"".join(safetensors.encode(views))


def test_mistakes_of_a_real_process_print_one_line_and_exit_2(tmp_path):
    status, stderr = run_serve({"learner": tmp_path / "nowhere"})
    assert status == 2
    assert f"learner is {tmp_path / 'nowhere'}; must be a folder with a manifest.json" in one_line(stderr)
    status, stderr = run_serve({"thread": "2", "unheard_of": "1"})
    assert status == 2
    assert "--unheard-of" in one_line(stderr)


def test_a_port_in_use(serve, plain_server):
    """Also by another sidecar: two never share a port."""
    listen, metrics_listen = plain_server.address, f"127.0.0.1:{plain_server.metrics_port}"
    assert f"metrics_listen is {metrics_listen}; " in serve("--metrics-listen", metrics_listen)
    assert f"listen is {listen}; must be a free host:port" in serve("--listen", listen)
    assert len(plain_server.select(some_losses()).indices) == 4, "the first one goes on serving"


@pytest.mark.parametrize("address", ["nonsense", "nonsense:port", "127.0.0.1:99999", "203.0.113.1:50051"])
def test_an_address_that_cannot_be_bound(serve, address):
    assert f"listen is {address}; must be a free host:port or unix:/path" in serve("--listen", address)


@pytest.fixture
def serve(capsys, monkeypatch):
    """Runs `selector serve` in this process, where only mistakes end it: exit status and its one line."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def run(*arguments, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(f"SELECTOR_{name.upper()}", value)
        try:
            status = cli.main(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        finally:
            root.handlers[:] = before[0]
            root.setLevel(before[1])
        assert status == 2
        return one_line(capsys.readouterr().err)

    return run


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bogus", "1"], "unrecognized arguments: --bogus 1"),
        (["--learner"], "--learner: expected one argument"),
        (["--micro-batch", "-1"], "micro_batch is '-1'; Input should be greater than or equal to 0"),
        (["--micro-batch", "1.5"], "micro_batch is '1.5'"),
        (["--threads", "-1"], "threads is '-1'"),
        (["--device", "gpu"], "device is 'gpu'"),
        (["--log-level", "loud"], "log_level is 'loud'; Input should be 'debug', 'info', 'warning' or 'error'"),
        (["--drain-seconds", "nan"], "drain_seconds is 'nan'"),
        (["--receive-seconds", "inf"], "receive_seconds is 'inf'"),
        (["--weights-poll-seconds", "1e300"], "weights_poll_seconds is '1e300'"),
        (["--run", "two words"], "run is 'two words'; must be 1 to 64 letters"),
        (["--run", "x" * 65], "1 to 64 letters"),
        (["--redis", "http://somewhere"], "redis is http://somewhere; must be redis://"),
        (["--redis", "redis://:hunter2@host:port"], "redis is ***; must be redis://"),
        (["--redis", "redis://:hunter2/hunter2@host"], "redis is ***; must be redis://"),
        (["--redis", "redis://localhost"], "weights need a learner"),
        (["--config", "/does/not/exist.toml"], "config is /does/not/exist.toml; cannot be read"),
        (["--metrics-listen", "localhost"], "metrics_listen is localhost; "),
        (["--metrics-listen", "localhost:99999"], "metrics_listen is localhost:99999; "),
        (["--admin-listen", "localhost"], "admin_listen is localhost; must be a free host:port or unix:/path"),
        (["--when-stale", "hope"], "when_stale is 'hope'; Input should be 'serve', 'wait' or 'refuse'"),
        (["--max-weights-lag-steps", "-1"], "max_weights_lag_steps is '-1'"),
        (["--max-weights-age-seconds", "nan"], "max_weights_age_seconds is 'nan'"),
    ],
)
def test_wrong_settings(serve, arguments, named):
    line = serve(*arguments)
    assert line.startswith("selector")
    assert named in line
    assert "hunter2" not in line


def test_a_device_that_is_not_there(serve):
    assert "device is cuda:77; torch sees " in serve("--device", "cuda:77")


def test_wrong_environment(serve):
    assert "max_width is '-3'" in serve(max_width="-3")
    assert "micro_batch is 'many'" in serve(micro_batch="many", max_width="3")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_width = ", "cannot be read"),
        ("max_widht = 3", "max_widht"),
        ("[limits]\nmax_width = 3", "limits"),
        ('run = "a\\nb"', "run is "),
        ("max_width = 'wide'", "max_width is 'wide'"),
        ('redis = ["redis://:hunter2@host"]', "redis is not text"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_wrong_file(serve, tmp_path, text, named):
    file = tmp_path / "settings.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = serve("--config", file)
    assert named in line
    assert "hunter2" not in line


def test_no_verb_and_unknown_verbs(capsys):
    for arguments in ([], ["sreve"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert one_line(capsys.readouterr().err).startswith("selector: ")


def test_info_of_a_server_that_is_not_there(capsys):
    port = free_port()
    assert cli.main(["info", f"127.0.0.1:{port}", "--timeout", "0.3"]) == 1
    assert f"127.0.0.1:{port}" in one_line(capsys.readouterr().err)


def test_info_of_a_server(capsys, server):
    assert cli.main(["info", server.address]) == 0
    text = capsys.readouterr().out
    assert '"server_version"' in text
    assert '"state": "SYNC_STATE_OFF"' in text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def corrupt_file(models, path):
    flip(copy_of(models.learner_path, path) / "image.onnx")


def missing_file(models, path):
    (copy_of(models.learner_path, path) / "text.onnx").unlink()


def broken_manifest(models, path):
    (copy_of(models.learner_path, path) / "manifest.json").write_text('{\n"format": 1,\n"name": \n}')


def manifest_without_tower(models, path):
    copy_of(models.learner_path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["text.onnx"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def escaping_file(models, path):
    copy_of(models.learner_path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))


def weights_without(name):
    def build(models, path):
        weights = weights_file(models.learner_path, lambda arrays: arrays.pop(name))
        copy_of(models.learner_path, path, weights=weights)

    return build


def nan_weights(models, path):
    def change(arrays):
        arrays["text.bias"][3] = np.nan

    copy_of(models.learner_path, path, weights=weights_file(models.learner_path, change))


def unlisted_file(models, path):
    (copy_of(models.learner_path, path) / "image.onnx.data").write_bytes(b"weights from nowhere")


def of_the_future(models, path):
    graph = onnx.load(models.learner_path / "image.onnx")
    for opset in graph.opset_import:
        opset.version = 99
    copy_of(models.learner_path, path, image=graph.SerializeToString())


def changed(**files):
    return lambda models, path: copy_of(models.learner_path, path, **files)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda models, path: path.write_text("a file"), "must be a folder with a manifest.json"),
        (corrupt_file, "image.onnx: SHA-256 is "),
        (missing_file, "text.onnx; No such file"),
        (broken_manifest, "Invalid JSON"),
        (manifest_without_tower, "must list text.onnx"),
        (escaping_file, "must be a plain file name"),
        (changed(format=2), "format is 2"),
        (changed(role="reference", logit_scale=1.0), "role is reference; must be learner"),
        (changed(unheard_of=1), "unheard_of is 1"),
        (changed(width=0), "width is 0"),
        (changed(width=17), "must take what the manifest says"),
        (changed(image={"height": 9, "width": 8, "channels": 3}), "must take what the manifest says"),
        (changed(text={"max_tokens": 6, "vocabulary": 6400}), "must take what the manifest says"),
        (unlisted_file, "must list image.onnx.data"),
        (changed(logit=None), "logit is missing"),
        (changed(parameters={}), "must name each weight input of the graphs once"),
        (changed(image=b"no graph"), "ONNX graph is "),
        (of_the_future, "opset"),
        (changed(tokenizer=b"{}"), "tokenizer is "),
        (changed(weights=b"no safetensors"), "weights is "),
        (weights_without("image.weight"), "parameter image.weight is missing"),
        (weights_without("logit_scale"), "parameter logit_scale is missing"),
        (nan_weights, "parameter text.bias is NaN or infinite"),
    ],
)
def test_a_bundle_that_cannot_be_trusted(serve, bundles, tmp_path, build, named):
    path = tmp_path / "bundle"
    build(bundles, path)
    assert named in serve("--learner", path)


def test_bundles_in_the_wrong_place_or_of_another_input(serve, bundles, tmp_path):
    assert "role is learner; must be reference" in serve("--reference", bundles.learner_path)
    other = tmp_path / "other"
    export_reference(source("other", TwoTower(3), loss="softmax"), other)
    line = serve("--learner", bundles.learner_path, "--reference", other)
    assert "must have the learner's loss" in line


def test_the_metrics_port_is_bound_where_asked(plain_server):
    with socket.create_connection(("127.0.0.1", plain_server.metrics_port), timeout=5):
        pass
