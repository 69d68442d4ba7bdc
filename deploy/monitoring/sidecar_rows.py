"""Panels about a sidecar's work. Each row lists its panels from left to right."""

from typing import Any

from grafana import S, each, mean, panel, quantile, rate, rate_by, series, stat

GREEN_FROM_1 = ((None, "red"), (1, "green"))
SELECT = 'method="Select"'
OK = f'{SELECT}, code="OK"'
REQUESTS, SECONDS = "selector_requests_total", "selector_request_duration_seconds"
STAGES = "selector_stage_duration_seconds"
HITS, MISSES = rate("selector_cached_references_total"), rate("selector_reference_cache_misses_total")

ROWS: dict[str, list[dict[str, Any]]] = {
    "Is it healthy?": [
        stat("Sidecars", "That answer Prometheus.", "short", f"sum(up{{{S}}})", *GREEN_FROM_1),
        stat(
            "Workers",
            "1 while every device's worker makes progress.",
            "short",
            f"min(selector_worker_up{{{S}}})",
            *GREEN_FROM_1,
        ),
        stat(
            "Alerts",
            "Alerts of alerts.yaml that fire.",
            "short",
            'count(ALERTS{alertname=~"Selector.+", alertstate="firing"}) or vector(0)',
            (None, "green"),
            (1, "red"),
        ),
        stat("Selections", "Answered selections per second.", "reqps", rate(REQUESTS, OK), (None, "blue")),
        stat(
            "Not answered",
            "Share of selections that ended otherwise than OK.",
            "percentunit",
            f"1 - {rate(REQUESTS, OK)} / {rate(REQUESTS, SELECT)}",
            (None, "green"),
            (0.01, "orange"),
            (0.05, "red"),
        ),
        stat(
            "Youngest",
            "Time since the last start of a sidecar.",
            "s",
            f"min(time() - process_start_time_seconds{{{S}}})",
            (None, "red"),
            (300, "green"),
        ),
        series(
            "Selections by status",
            "gRPC status of each selection.",
            "reqps",
            (rate(REQUESTS, SELECT, "code"), "{{code}}"),
        ),
        series(
            "Candidates",
            "Scored and picked per second.",
            "cps",
            (rate("selector_candidates_total"), "scored"),
            (rate("selector_picks_total"), "picked"),
        ),
        panel(
            "table",
            "Versions",
            "Version, device and execution provider of each sidecar.",
            "short",
            (f"selector_build_info{{{S}}}", ""),
        ),
    ],
    "Latency by stage": [
        series(
            "Selections",
            "Whole requests, from the first message to the answer.",
            "s",
            *((quantile(q, SECONDS, SELECT), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)),
        ),
        series(
            "Mean by stage",
            "Stages follow each other: the stack is the time of a mean selection.",
            "s",
            (mean(STAGES, "stage"), "{{stage}}"),
            stack=True,
        ),
        series(
            "95th percentile by stage",
            "Each by itself; their sum is more than that of whole requests.",
            "s",
            (quantile(0.95, STAGES, by="stage"), "{{stage}}"),
        ),
        panel(
            "heatmap",
            "All selections",
            "How many per second took how long.",
            "s",
            (rate(f"{SECONDS}_bucket", SELECT, "le"), "{{le}}"),
            width=12,
        ),
        series(
            "Super-batches",
            "Candidates of a request (B).",
            "short",
            (quantile(0.5, "selector_super_batch_candidates"), "median"),
            (mean("selector_super_batch_candidates"), "mean"),
            width=12,
        ),
    ],
    "Queue and rejections": [
        series(
            "Requests under way",
            "Waiting or running; at the limit, one more is rejected.",
            "short",
            each("selector_pending_requests"),
            each("selector_pending_requests_limit", "limit of {}"),
        ),
        series("Queue", "Requests that wait for the device's worker.", "short", each("selector_queue_depth")),
        series(
            "Bytes under way",
            "Payloads of requests under way; beyond the limit, more are rejected.",
            "bytes",
            each("selector_inflight_bytes"),
            each("selector_inflight_bytes_limit", "limit of {}"),
        ),
        series(
            "Rejected",
            "Selections refused for the server's sake, by reason.",
            "reqps",
            rate_by("selector_rejected_total", "reason"),
            width=12,
        ),
        series(
            "Cancelled",
            "Selections whose client left, by where they were.",
            "reqps",
            rate_by("selector_cancelled_total", "where"),
            width=12,
        ),
    ],
    "Encoder, cache, memory": [
        series(
            "Excluded",
            "Candidates that cannot be used and are left out, by reason.",
            "cps",
            rate_by("selector_excluded_total", "reason"),
        ),
        series(
            "Not examined",
            "Candidates that nobody looked at, because all that was needed was in the cache.",
            "cps",
            rate_by("selector_not_examined_total", "instance"),
        ),
        series(
            "Micro-batches",
            "Samples encoded at once.",
            "short",
            (mean("selector_micro_batch_samples"), "mean"),
            (quantile(0.95, "selector_micro_batch_samples"), "p95"),
        ),
        series(
            "Out of memory",
            "Micro-batches that did not fit and were halved.",
            "cps",
            rate_by("selector_micro_batch_halvings_total", "instance"),
        ),
        series(
            "Cache hits",
            "Of candidates with an id, those whose reference embeddings were known.",
            "percentunit",
            (f"{HITS} / ({HITS} + {MISSES})", "hits"),
        ),
        series(
            "Cache size",
            "Of the store, and its limit.",
            "bytes",
            each("selector_reference_cache_bytes"),
            each("selector_reference_cache_bytes_limit", "limit of {}"),
        ),
        series(
            "Cached samples",
            "Entries of the store, of every reference.",
            "short",
            each("selector_reference_cache_entries"),
        ),
        series("Cache problems", "By reason.", "cps", rate_by("selector_reference_cache_problems_total", "reason")),
        series(
            "Device memory",
            "CUDA: of the whole device, by whom. CPU: of the process, by kind.",
            "bytes",
            (f"sum by (kind) (selector_device_memory_bytes{{{S}}})", "{{kind}}"),
            stack=True,
        ),
        series(
            "Memory limit",
            "Of the device or cgroup, and what the process has in host memory.",
            "bytes",
            each("selector_device_memory_limit_bytes", "limit of {}"),
            each("process_resident_memory_bytes"),
        ),
        series("CPU", "Cores in use.", "short", rate_by("process_cpu_seconds_total", "instance")),
        series(
            "Shared memory",
            "Payload files that lie in the folder, and the memory that they take.",
            "bytes",
            each("selector_shm_bytes"),
            width=12,
        ),
        series(
            "Payloads through shared memory",
            "Requests per second.",
            "reqps",
            (rate("selector_shm_payloads_total"), "shared memory"),
            width=12,
        ),
    ],
}
