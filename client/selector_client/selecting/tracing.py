"""Makes spans of selections where OpenTelemetry traces the trainer, so that the sidecar's spans become their children.

Nothing is imported for it, because a trainer that has not loaded opentelemetry has no trace to continue.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import selector_proto


class Span:
    """The span of one selection. Without OpenTelemetry it does nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def metadata(self) -> list[tuple[str, str]] | None:
        """Returns the metadata that a call must carry so that the sidecar knows this span."""
        if self._span is None:
            return None
        carrier: dict[str, str] = {}
        import_module("opentelemetry.propagate").inject(carrier)
        return [(key.lower(), value) for key, value in carrier.items()]

    def done(self, fallback: str, retries: int) -> None:
        """Notes on the span how the selection ended."""
        if self._span is not None:
            self._span.set_attributes({"selector.fallback": fallback, "selector.retries": retries})


@contextmanager
def span(name: str) -> Iterator[Span]:
    """Opens a span of kind client for the time of the block, as a child of the current one."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield Span()
        return
    tracer = trace.get_tracer("selector_client", selector_proto.__version__)
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT) as current:
        yield Span(current)
