"""Times the stages of a selection."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from selector_server.engine.task import Stages
from selector_server.telemetry import tracing


@contextmanager
def timed(stages: Stages, stage: str) -> Iterator[None]:
    """Adds the seconds that the block takes to this field of `stages`, and a span to the request's trace."""
    started = time.perf_counter()
    with tracing.stage(stage):
        try:
            yield
        finally:
            setattr(stages, stage, getattr(stages, stage) + time.perf_counter() - started)
