"""Traces by a real OTLP receiver: HTTP, protobuf, spans of a trainer and of a sidecar in one trace."""

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from selector_client import Selector
from support.model import samples
from support.processes import SlowClient, eventually
from support.wire import raw, some_losses

from selector_server.errors import SetupError
from selector_server.telemetry.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes what is posted to /v1/traces."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans, self.services, self.paths = [], set(), set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def of_trace(self, trace_id):
        found = defaultdict(list)
        for span in self.spans:
            if span.trace_id.hex() == trace_id:
                found[span.name].append(span)
        return found


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.server.services |= {
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.server.paths.add(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        """Silent."""


@pytest.fixture(scope="module")
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(start_sidecars, bundles, collector):
    flags = {"traces": "otlp", "otlp_endpoint": collector.url, "log_format": "json", "access_log": "true"}
    with start_sidecars() as start:
        yield start(bundles.flags | flags, env={"OTEL_BSP_SCHEDULE_DELAY": "100"})


def attributes(span):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def ask(server, request, **options):
    return server.stub.Select(iter(request.messages()), timeout=30, **options)


def test_a_request_is_one_span_and_its_stages_are_children_in_the_clients_trace(traced, collector):
    pixels, ids = samples(40)
    ask(traced, raw(pixels, ids, request_id="traced"), metadata=[("traceparent", PARENT)])
    trace = PARENT.split("-")[1]
    stages = {"receive", "queue", "preprocess", "encode_learner", "encode_reference", "sample"}
    spans = eventually(lambda: "Select" in (s := collector.of_trace(trace)) and s)
    assert set(spans) == {"Select", *stages}
    (select,) = spans["Select"]
    assert select.parent_span_id.hex() == PARENT.split("-")[2]
    assert select.kind == select.SPAN_KIND_SERVER
    assert select.status.code == select.status.STATUS_CODE_UNSET
    for stage in stages:
        (span,) = spans[stage]
        assert span.parent_span_id == select.span_id
        assert select.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= select.end_time_unix_nano
    starts = [
        spans[name][0].start_time_unix_nano for name in ("preprocess", "encode_learner", "encode_reference", "sample")
    ]
    assert starts == sorted(starts)
    shown = attributes(select)
    assert (shown["selector.candidates"], shown["selector.picks"], shown["selector.policy"]) == (40, 8, "joint")
    assert (shown["selector.request_id"], shown["rpc.response.status_code"]) == ("traced", "OK")
    assert collector.services >= {"selector"}
    assert collector.paths == {"/v1/traces"}
    line = next(json.loads(line) for line in traced.text.splitlines() if '"traced"' in line)
    assert (line["request_id"], line["trace_id"]) == ("traced", trace)
    assert re.fullmatch(r"Select OK in \d+\.\d{3} s, 8 of 40 picked by joint", line["message"])


def test_a_trainers_span_and_the_sidecars_are_one_trace(traced, collector):
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

    # The provider stays this process's own. Shut down, or without its collector, it would complain in later logs.
    exporter, provider = OTLPSpanExporter(f"{collector.url}/v1/traces"), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # of this process, once
    with trace.get_tracer("trainer").start_as_current_span("step") as step:
        with Selector(traced.address, policy="independent", sub_batch_size=5) as selector:
            assert selector.select_losses(*np.random.default_rng(0).random((2, 50), np.float32)).fallback == ""
    name = f"{step.get_span_context().trace_id:032x}"
    spans = eventually(lambda: {"step", "selector.select", "Select"} <= set(s := collector.of_trace(name)) and s)
    (client,), (server,) = spans["selector.select"], spans["Select"]
    assert client.parent_span_id == spans["step"][0].span_id
    assert server.parent_span_id == client.span_id
    assert client.kind == client.SPAN_KIND_CLIENT
    assert attributes(client)["selector.retries"] == 0
    exporter.export = lambda spans: SpanExportResult.SUCCESS


def test_what_went_wrong_is_in_the_span(traced, collector):
    with pytest.raises(grpc.RpcError):
        ask(traced, some_losses(policy="nobody's", request_id="wrong"))
    slow = SlowClient(traced, some_losses(request_id="left"))
    traced.wait_pending(1)
    slow.leave()

    def found():
        return {attributes(span).get("selector.request_id"): span for span in collector.named("Select")}

    spans = eventually(lambda: {"wrong", "left"} <= set(s := found()) and s)
    codes = {name: attributes(spans[name])["rpc.response.status_code"] for name in ("wrong", "left")}
    assert codes == {"wrong": "INVALID_ARGUMENT", "left": "CANCELLED"}
    assert spans["wrong"].status.code == spans["wrong"].status.STATUS_CODE_UNSET, "the client's mistake"


def test_a_collector_that_is_not_there_holds_nothing_up():
    tracing = Tracing.of("otlp", "http://127.0.0.1:9")
    with tracing.request("Select", ()) as trace:
        trace.end("OK", "")
    started = time.monotonic()
    tracing.close()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "http://", "http://user:hunter2@host", "grpc://host:1", "http://h:x"]
)
def test_wrong_endpoints(endpoint):
    with pytest.raises(SetupError, match="otlp_endpoint is not usable; must be http") as caught:
        Tracing.of("otlp", endpoint)
    assert "hunter2" not in str(caught.value)
