"""Gauges whose values are read whenever they are scraped, and histograms that are told of many values at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Readings(Collector):
    """A gauge with one label. `read` gives its values by the label's; set it before the first scrape."""

    def __init__(self, name: str, text: str, label: str, registry: CollectorRegistry) -> None:
        self._name, self._text, self._labelnames = name, text, (label,)
        self.read: Callable[[], Mapping[str, float]] = dict
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for value, reading in self.read().items():
            family.add_metric([value], reading)
        yield family


class BulkHistogram(Collector):
    """A histogram with these ascending bounds, of values that may be negative: then it has no sum, which would not only
    grow. prometheus_client's own would take a microsecond a value."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labelnames, self.bounds = name, text, labels, tuple(bounds)
        self._series: dict[tuple[str, ...], list[int]] = {}
        self._lock = Lock()
        registry.register(self)

    def add(self, labels: tuple[str, ...], counts: Sequence[int]) -> None:
        """Adds so many values up to each bound, the last ones above all of them."""
        with self._lock:
            old = self._series.get(labels, [0] * (len(self.bounds) + 1))
            self._series[labels] = [a + b for a, b in zip(old, counts, strict=True)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        with self._lock:
            series = dict(self._series)
        names = [*map(str, self.bounds), "+Inf"]
        for labels, counts in series.items():
            family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), None)
        yield family
