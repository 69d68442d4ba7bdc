"""Which version of the learner's weights is served, and how following the trainer's goes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from selector_server.telemetry.buckets import SECONDS
from selector_server.telemetry.readings import Readings


class WeightsMetrics:
    """Metrics of the weights, on a registry of their own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.version = Gauge("selector_weights_version", "Version served.", registry=r)
        self.newest = Gauge("selector_weights_newest_version", "Version announced.", registry=r)
        self.step = Gauge("selector_weights_trainer_step", "Trainer step of that version.", registry=r)
        self.age = Gauge("selector_weights_age_seconds", "Age of that version.", registry=r)
        self.clock_skew = Gauge(
            "selector_weights_clock_skew_seconds",
            "By how much the clock of the publisher of the newest version is ahead of this host's; negative: behind.",
            registry=r,
        )
        self.lag = Gauge(
            "selector_weights_lag_steps",
            "Steps between the last request that named its trainer's step and the weights that scored it.",
            registry=r,
        )
        self.state = Readings(
            "selector_weights_sync_state",
            "1 for the state of weight sync; state: off, waiting, current, rejected, disconnected, pinned.",
            "state",
            r,
        )
        self.connected = Gauge("selector_weights_source_connected", "1 while it answers.", registry=r)
        self.evicts = Gauge("selector_weights_source_evicts", "1 while it may evict what is published.", registry=r)
        self.pinned = Gauge("selector_weights_pinned", "1 while a version is pinned.", registry=r)
        self.sync = Counter(
            "selector_weights_sync_total", "Versions seen; result: served, refused, incomplete.", ["result"], registry=r
        )
        self.sync_bytes = Counter("selector_weights_sync_bytes_total", "Bytes of weights fetched.", registry=r)
        self.sync_seconds = Histogram(
            "selector_weights_sync_duration_seconds",
            "Phases of taking a version; phase: fetch (and verify), upload, probe, canary, swap.",
            ["phase"],
            buckets=SECONDS,
            registry=r,
        )
        for result in ("served", "refused", "incomplete"):  # an increase from nothing is none to Prometheus
            self.sync.labels(result)
