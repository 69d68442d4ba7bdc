"""Shows the client's counters to Prometheus. It needs the extra `metrics`."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

# These are shown from the start, because Prometheus does not take the first value of a series for an increase.
REASONS = ("unavailable", "deadline_exceeded", "resource_exhausted", "breaker_open", "proxy")
UNSERVED = ("rejected", "disconnected", "pinned")
EXCLUSIONS = ("missing", "unreadable", "format", "too_large", "text", "value", "repeated")


def export(
    *, selector: Any = None, loader: Any = None, publisher: Any = None, registry: CollectorRegistry = REGISTRY
) -> None:
    """Registers what these objects count, which is read at every scrape. A registry takes one of each kind: another one
    raises ValueError, as two metrics of one name do."""
    for kind, source in ((_Selector, selector), (_Loader, loader), (_Publisher, publisher)):
        if source is not None:
            registry.register(kind(source))


class _Source:
    def __init__(self, source: Any) -> None:
        self._source = source

    def describe(self) -> list[Metric]:
        """Returns what it collects, so that the registry refuses a second one of its kind."""
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        raise NotImplementedError


class _Selector(_Source):
    def collect(self) -> Iterator[Metric]:
        counts, breaker = self._source.statistics, self._source.breaker
        for name, text, value in (
            ("requests", "Selections", counts.requests),
            ("request_seconds", "Seconds spent in selections", counts.seconds),
            ("candidates", "Candidates that were selected from", counts.candidates),
            ("picks", "Candidates that were picked", counts.picks),
            ("retries", "Requests that were sent again", counts.retries),
            ("renewals", "Connections that were given up after deadlines in a row", counts.renewals),
            ("stale", "Selections by weights older than accepted", counts.stale),
            ("not_examined", "Candidates that nobody looked at, for they were in a cache", counts.not_examined),
            ("breaker_opened", "Times that the breaker opened", breaker.opened),
        ):
            yield CounterMetricFamily(f"selector_client_{name}", text, value=value)
        yield GaugeMetricFamily("selector_client_breaker_open", "Whether nothing is asked", value=float(breaker.open))
        for name, text, label, known, found in (
            ("fallbacks", "Uniform sub-batches, by reason", "reason", REASONS, counts.fallbacks),
            ("excluded", "Candidates that were left out, by reason", "reason", EXCLUSIONS, counts.excluded),
            (
                "unserved",
                "Selections whose sidecar does not serve the newest weights",
                "state",
                UNSERVED,
                counts.unserved,
            ),
        ):
            family = CounterMetricFamily(f"selector_client_{name}", text, labels=[label])
            for value, count in (dict.fromkeys(known, 0) | found).items():
                family.add_metric([value], count)
            yield family
        if (alike := counts.locality) is not None:
            cosines = GaugeMetricFamily(
                "selector_client_image_cosine_mean",
                "Mean cosine of the last candidates' images; of: adjacent (that follow each other), random",
                labels=["of"],
            )
            cosines.add_metric(["adjacent"], alike.adjacent)
            cosines.add_metric(["random"], alike.random)
            yield cosines
            yield GaugeMetricFamily(
                "selector_client_near_duplicate_picks_ratio",
                "Of the last picks, those with a near-duplicate (a cosine above 0.95) among the candidates",
                value=alike.near_duplicates,
            )


class _Loader(_Source):
    def collect(self) -> Iterator[Metric]:
        progress = self._source.progress
        for name, text, value in (
            ("steps", "Sub-batches that the trainer was given", progress.steps),
            ("wait_seconds", "Seconds that the trainer waited for sub-batches", progress.wait_seconds),
            ("step_seconds", "Seconds that the trainer worked on sub-batches", progress.step_seconds),
            ("dropped", "Super-batches that had too few candidates", progress.dropped),
        ):
            yield CounterMetricFamily(f"selector_client_{name}", text, value=value)
        if progress.lag_steps is not None:
            yield GaugeMetricFamily("selector_client_weights_lag_steps", "Of the last one", value=progress.lag_steps)


class _Publisher(_Source):
    def collect(self) -> Iterator[Metric]:
        publisher = self._source
        for name, text, value in (
            ("published", "Versions published", publisher.published),
            ("superseded", "Snapshots that newer ones replaced unpublished", publisher.superseded),
            ("publish_failures", "Publications that failed", publisher.failures),
            ("refused", "Models that were not published, since no learner could serve them", publisher.refused),
            ("refusals", "Versions that sidecars refused, once for each", publisher.refusals),
        ):
            yield CounterMetricFamily(f"selector_client_{name}", text, value=value)
        yield GaugeMetricFamily(
            "selector_client_published_version", "The last version published", value=publisher.last_version
        )
        yield GaugeMetricFamily(
            "selector_client_publishing_unsafe",
            "1 while Redis may evict what is published",
            value=bool(publisher.unsafe),
        )
