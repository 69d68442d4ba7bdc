"""What a request's trace has, without a collector."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from selector_server.telemetry.tracing import Tracing


def spans_of(work: Coroutine[Any, Any, object]) -> list[str]:
    """Runs work as a traced request, and returns the names of the spans in it, in the order in which they ended."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)

    async def traced() -> None:
        with tracing.request("/selector.v1.SelectorService/Select", []) as trace:
            await work
            trace.end("OK", "")

    asyncio.run(traced())
    tracing.close()
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.pop() == "Select"
    return names
