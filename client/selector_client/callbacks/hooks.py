"""Does what every trainer does beside its steps: it publishes the weights, logs how selection goes, and closes at the
end."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from selector_client.loading.loader import SelectingLoader
from selector_client.publishing.publisher import WeightPublisher
from selector_client.selecting.selector import Selector

log = logging.getLogger(__name__)


def log_line(step: int, metrics: Mapping[str, float]) -> None:
    """Logs metrics in one line."""
    log.info("step %d: %s", step, ", ".join(f"{name} {value:g}" for name, value in metrics.items()))


class TrainingHooks:
    """Hooks for a training loop of your own, which calls `after_step` after each optimizer step and `close` at the end.

    hooks = TrainingHooks(selector, loader, publisher, log=lambda step, metrics: tracker.log(metrics, step))
    for step, batch in enumerate(loader):
        train_step(batch)
        hooks.after_step(step + 1, model)
    hooks.close()

    Nothing here raises into the loop. What fails is counted as `selector/errors`, and logged with its trace once for
    each kind of failure. Every rank of a sharded model must call `after_step`; rank 0 publishes.
    """

    def __init__(
        self,
        selector: Selector,
        loader: SelectingLoader | None = None,
        publisher: WeightPublisher | None = None,
        *,
        weights: Callable[[Any], Any] = lambda model: model,
        log: Callable[[int, Mapping[str, float]], object] = log_line,
        log_every: int = 50,
    ) -> None:
        """`weights(model)` is what is published: a module, or a mapping from the bundle's names to tensors. The
        publisher's `every` says how often. `log(step, metrics)` is called each `log_every` steps, and never if that is
        0. Raises ValueError."""
        if log_every < 0:
            raise ValueError(f"log_every is {log_every}; must not be negative")
        self.loader = loader
        self._selector, self._publisher = selector, publisher
        self._weights, self._log, self._log_every = weights, log, log_every
        self._errors: dict[str, int] = {}

    def after_step(self, step: int, model: Any) -> None:
        """Publishes and logs, after `step` optimizer steps have made these weights of `model`."""
        if self._publisher is not None:
            with self.guarded("publishing weights"):
                self._publisher.publish(step, self._weights(model))
        if self._log_every and step % self._log_every == 0:
            with self.guarded("logging"):
                self._log(step, self.metrics())

    def metrics(self) -> dict[str, float]:
        """Returns counts and seconds since the start, and of the latest selection its objective (nats per example) and
        how old the weights were that scored it. What is not known is left out."""
        statistics = self._selector.statistics
        values: dict[str, float | None] = {
            "selector/requests": statistics.requests,
            "selector/fallbacks": statistics.fallbacks.total(),
            "selector/stale": statistics.stale,
            "selector/unserved": statistics.unserved.total(),
            "selector/excluded": statistics.excluded.total(),
            "selector/errors": sum(self._errors.values()),
        }
        if self.loader is not None:
            values["selector/wait_seconds"] = self.loader.wait_seconds
            values["selector/dropped"] = self.loader.progress.dropped
            if (last := self.loader.last) is not None:
                values |= {
                    "selector/objective": last.objective,
                    "selector/objective_uniform": last.objective_uniform,
                    "selector/weights_lag_steps": last.weights_lag_steps,
                    "selector/weights_age_seconds": last.weights_age_seconds,
                }
        if self._publisher is not None:
            values["selector/published"] = self._publisher.published
            values["selector/publish_failures"] = self._publisher.failures
            values["selector/refusals"] = self._publisher.refusals + self._publisher.refused
        return {name: float(value) for name, value in values.items() if value is not None}

    def close(self) -> None:
        """Waits for weights under way, closes the publisher, and ends the loader's threads and the selector's
        connection."""
        for part in (self._publisher, self.loader, self._selector):
            if part is not None:
                with self.guarded("closing"):
                    part.close()

    @contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Logs and counts what goes wrong within the block, and does not raise it."""
        try:
            yield
        except Exception as error:  # whatever it is, training must go on
            kind = f"{doing}: {type(error).__name__}"
            if kind not in self._errors:
                log.exception("%s failed; training goes on", doing)
            self._errors[kind] = self._errors.get(kind, 0) + 1
