"""What the encoders count, and what the trainer's canary says of new weights."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SAMPLES = tuple(float(2**i) for i in range(13))


class EncodingMetrics:
    """Metrics of learner and reference together, on a registry of their own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.micro_batch = Histogram(
            "selector_micro_batch_samples", "Images or texts encoded at once.", buckets=SAMPLES, registry=r
        )
        self.halvings = Counter(
            "selector_micro_batch_halvings_total", "Micro-batches that did not fit in memory.", registry=r
        )
        self.canary_error = Gauge(
            "selector_canary_max_abs_error",
            "Largest difference between an embedding's entry here and at the trainer, of the last canary.",
            registry=r,
        )
        self.canary_checks = Counter(
            "selector_canary_checks_total", "Canaries compared; result: passed, failed.", ["result"], registry=r
        )
        for result in ("passed", "failed"):
            self.canary_checks.labels(result)

    def canary(self, max_abs_error: float, passed: bool) -> None:
        """Records one comparison."""
        self.canary_error.set(max_abs_error)
        self.canary_checks.labels("passed" if passed else "failed").inc()
