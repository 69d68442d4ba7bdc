"""Traces of selections by OpenTelemetry, where they are asked for; otherwise nothing, at the price of a look at one
variable. Needs the extra `traces`, which is imported when a Tracing is made.

A request is one server span, the child of the client's if its metadata say so (W3C traceparent), and each of its
stages is a child span. Whatever thread works for a request finds its trace in the context that came along.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import selector_proto

from selector_server.errors import SetupError

# The longest wait for the collector at the end.
FLUSH_MILLISECONDS = 3000
_CURRENT: ContextVar["Trace | None"] = ContextVar("trace", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Adds a span to the request that is worked for, as long as the block takes."""
    trace = _CURRENT.get()
    if trace is None:
        yield
        return
    started = time.time_ns()
    try:
        yield
    except BaseException as error:
        trace.child(name, started, type(error).__name__)
        raise
    trace.child(name, started)


def past(name: str, seconds: float) -> None:
    """Adds a span that took these seconds and ends now."""
    if (trace := _CURRENT.get()) is not None:
        trace.child(name, time.time_ns() - int(seconds * 1e9))


def annotate(attributes: Mapping[str, str | int | float | bool]) -> None:
    """Adds attributes to the request's span, if there is one."""
    if (trace := _CURRENT.get()) is not None:
        trace.annotate(attributes)


def trace_id() -> str:
    """The trace id of the request that is worked for, 32 hex digits; empty without a trace."""
    trace = _CURRENT.get()
    return "" if trace is None else trace.id


class Trace:
    """The server span of one request."""

    def __init__(self, tracer: Any, span: Any, parent: Any) -> None:
        self._tracer, self._span, self._parent = tracer, span, parent
        self.id = f"{span.get_span_context().trace_id:032x}"

    def annotate(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        self._span.set_attributes(attributes)

    def child(self, name: str, started: int, error: str = "") -> None:
        """Adds a span from `started` (time.time_ns()) until now."""
        span = self._tracer.start_span(name, self._parent, start_time=started)
        if error:
            _fail(span, error)
        span.end()

    def end(self, code: str, message: str) -> None:
        """`code` is the name of a gRPC status. The server's mistakes are errors, the client's are not."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code in ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"):
            _fail(self._span, message or code)
        self._span.end()


class Tracing:
    """Sends spans to an OTLP collector, or prints them."""

    def __init__(self, exporter: Any) -> None:
        """`exporter` is one of OpenTelemetry's."""
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        resource = Resource.create()  # It takes OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES into account.
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "selector"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("selector_server", selector_proto.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def of(cls, kind: Literal["off", "otlp", "console"], endpoint: str) -> Self | None:
        """`endpoint` is an OTLP collector's URL for HTTP; without one, OTEL_EXPORTER_OTLP_… of the environment count.
        Raises SetupError."""
        if kind == "off":
            return None
        try:
            if kind == "console":
                from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

                return cls(ConsoleSpanExporter())
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise SetupError("traces", kind, f"needs {error.name}: pip install 'jest-selector[traces]'") from error
        return cls(OTLPSpanExporter(_traces_url(endpoint) if endpoint else None))

    @contextmanager
    def request(self, method: str, metadata: Sequence[tuple[str, Any]]) -> Iterator[Trace]:
        """Begins the trace of a request that came with these metadata; it must be ended within the block."""
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415

        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        above = self._propagator.extract(carrier)
        span = self._tracer.start_span(method.rpartition("/")[2], above, SpanKind.SERVER, attributes)
        trace = Trace(self._tracer, span, set_span_in_context(span, above))
        token = _CURRENT.set(trace)
        try:
            yield trace
        finally:
            _CURRENT.reset(token)

    def close(self) -> None:
        """Sends what is left, as far as it can be sent in a few seconds."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


def _fail(span: Any, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

    span.set_status(Status(StatusCode.ERROR, message))


def _traces_url(endpoint: str) -> str:
    try:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.port == 0:
            raise ValueError("scheme, host or user")
    except ValueError as error:
        raise SetupError("otlp_endpoint", "not usable", "must be http[s]://host[:port][/path]") from error
    return endpoint if url.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
