"""Prometheus metrics, in base units, on a registry of their own."""

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from selector_server.errors import Exclusion
from selector_server.telemetry.buckets import SECONDS
from selector_server.telemetry.encoding_metrics import EncodingMetrics
from selector_server.telemetry.quality_metrics import QualityMetrics
from selector_server.telemetry.readings import Readings
from selector_server.telemetry.slice_metrics import SliceMetrics
from selector_server.telemetry.weights_metrics import WeightsMetrics

# Refusing takes about a millisecond. One edge is at 50 ms: it should never take longer.
REJECT_SECONDS = tuple(m * 10.0**e for e in (-4, -3, -2, -1) for m in (1, 1.5, 2, 3, 5, 7))
POWERS = tuple(float(2**i) for i in range(4, 21))


class Metrics:
    """Every metric of the server. Names carry unit and kind; no label is an id."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.process = ProcessCollector(registry=r)
        self.encoding = EncodingMetrics(r)
        self.quality = QualityMetrics(r)
        self.weights = WeightsMetrics(r)
        self.build = Info("selector_build", "1; its labels say what runs, and where.", registry=r)
        self.requests = Counter("selector_requests_total", "Requests answered.", ["method", "code"], registry=r)
        self.rejected = Counter(
            "selector_rejected_total",
            "Selections refused for the server's sake: pending, bytes, memory, too_large, late, draining, unavailable.",
            ["reason"],
            registry=r,
        )
        self.cancelled = Counter(
            "selector_cancelled_total",
            "Selections whose client left, by where they were: receive, preprocess, queue, encode, sample.",
            ["where"],
            registry=r,
        )
        self.request_seconds = Histogram(
            "selector_request_duration_seconds", "Whole requests.", ["method"], buckets=SECONDS, registry=r
        )
        self.reject_seconds = Histogram(
            "selector_reject_duration_seconds",
            "Requests refused by their first message because too much is under way, from it to their status.",
            buckets=REJECT_SECONDS,
            registry=r,
        )
        self.stage_seconds = Histogram(
            "selector_stage_duration_seconds",
            "Stages of a selection; see StageSeconds.",
            ["stage"],
            buckets=SECONDS,
            registry=r,
        )
        self.pending = Gauge("selector_pending_requests", "Requests waiting or running.", registry=r)
        self.pending_limit = Gauge("selector_pending_requests_limit", "One more is rejected.", registry=r)
        self.queue = Gauge("selector_queue_depth", "Requests that wait for the device's worker.", registry=r)
        self.inflight_bytes = Gauge("selector_inflight_bytes", "Payload bytes of pending requests.", registry=r)
        self.inflight_bytes_limit = Gauge("selector_inflight_bytes_limit", "More are rejected.", registry=r)
        self.connections = Readings(
            "selector_connections_ratio",
            "Connections to each address, of as many as it may have; at 1, one more is closed.",
            "listener",
            r,
        )
        self.candidates = Counter("selector_candidates_total", "Candidates scored.", registry=r)
        self.excluded = Counter(
            "selector_excluded_total",
            f"Candidates left out because they cannot be used; reason: {', '.join(one.value for one in Exclusion)}.",
            ["reason"],
            registry=r,
        )
        self.not_examined = Counter(
            "selector_not_examined_total",
            "Candidates whose image and text nobody looked at, because all that was needed was in the cache.",
            registry=r,
        )
        self.cached = Counter(
            "selector_cached_references_total", "Candidates whose reference embeddings were in the cache.", registry=r
        )
        self.uncached = Counter(
            "selector_reference_cache_misses_total", "Candidates that were looked up in vain.", registry=r
        )
        self.cache_problems = Counter(
            "selector_reference_cache_problems_total",
            "What went wrong with the cache; reason: full, disk, busy, corrupt, failed.",
            ["reason"],
            registry=r,
        )
        self.cache_entries = Gauge(
            "selector_reference_cache_entries", "Samples in the cache's store, of every reference.", registry=r
        )
        self.cache_bytes = Gauge("selector_reference_cache_bytes", "Bytes that the store takes.", registry=r)
        self.cache_bytes_limit = Gauge("selector_reference_cache_bytes_limit", "Nothing is kept beyond.", registry=r)
        self.picks = Counter("selector_picks_total", "Candidates picked.", registry=r)
        self.super_batch = Histogram(
            "selector_super_batch_candidates", "Candidates a request (B).", buckets=POWERS, registry=r
        )
        self.objective = Gauge(
            "selector_objective_nats",
            "Score per example of the last sub-batch, its pairs included; of: picks, and uniform, what to expect of as "
            "many at random.",
            ["of"],
            registry=r,
        )
        self.stale = Counter(
            "selector_stale_selections_total",
            "Selections that met weights older than they accept, by what was done: serve, wait, refuse.",
            ["action"],
            registry=r,
        )
        self.shm_swept = Counter(
            "selector_shm_swept_total", "Payload files of dead clients removed at the start.", registry=r
        )
        self.secrets = Counter(
            "selector_secret_reloads_total",
            "Certificates and token files read anew after a change, by file and result: taken, refused.",
            ["file", "result"],
            registry=r,
        )
        self.shm_payloads = Counter(
            "selector_shm_payloads_total", "Requests whose payload came through shared memory.", registry=r
        )
        self.shm_files = Gauge("selector_shm_files", "Payload files of clients in the folder.", registry=r)
        self.shm_bytes = Gauge("selector_shm_bytes", "Memory that they take.", registry=r)
        self.memory = Readings(
            "selector_device_memory_bytes",
            "Memory by kind. CUDA, the whole device: allocated and cached (torch), other (ONNX Runtime, other "
            "processes), free. CPU, this process: anonymous, file, shared.",
            "kind",
            r,
        )
        self.memory_limit = Gauge(
            "selector_device_memory_limit_bytes",
            "CUDA: the device's memory. CPU: the cgroup's limit, or the machine's memory.",
            registry=r,
        )
        self.slices = SliceMetrics(r)
        self.unobserved = Counter(
            "selector_unobserved_selections_total",
            "Selections that nobody looked at for the inspector, because too many waited for that.",
            registry=r,
        )
        self.worker_up = Gauge("selector_worker_up", "1 while the device's worker makes progress.", registry=r)

        self._begin()

    def _begin(self) -> None:
        """Makes series exist from the start: an increase from nothing is none to Prometheus."""
        for reason in ("pending", "bytes", "memory", "too_large", "late", "draining", "unavailable"):
            self.rejected.labels(reason)
        for where in ("receive", "preprocess", "queue", "encode", "sample"):
            self.cancelled.labels(where)
        for action in ("serve", "wait", "refuse"):
            self.stale.labels(action)
        for reason in ("full", "disk", "busy", "corrupt", "failed"):
            self.cache_problems.labels(reason)
        for exclusion in Exclusion:
            self.excluded.labels(exclusion.value)
        for file, result in product(("tls", "token_file", "admin_token_file"), ("taken", "refused")):
            self.secrets.labels(file, result)
        self.requests.labels("Select", "OK")
        self.request_seconds.labels("Select")
