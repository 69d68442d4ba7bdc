"""Writes dashboard.json: `python deploy/monitoring/dashboard.py`. Each row lists its panels from left to right."""

import json
from pathlib import Path
from typing import Any

from grafana import S, T, each, laid_out, mean, panel, quantile, rate, rate_by, series, stat, variable

OUT = Path(__file__).with_name("dashboard.json")
GREEN_FROM_1 = ((None, "red"), (1, "green"))
SELECT = 'method="Select"'
OK = f'{SELECT}, code="OK"'
REQUESTS, SECONDS = "selector_requests_total", "selector_request_duration_seconds"
STAGES, SCORES = "selector_stage_duration_seconds", "selector_score_nats"
HITS, MISSES = rate("selector_cached_references_total"), rate("selector_reference_cache_misses_total")
WAIT, STEP = (rate(f"selector_client_{what}_seconds_total", by="instance", of=T) for what in ("wait", "step"))
CLIENT = "selector_client"
FAILURES = rate("selector_client_publish_failures_total", by="instance", of=T)

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
    "Weights": [
        series(
            "Version",
            "Served, and the newest one that the source announces.",
            "short",
            each("selector_weights_version"),
            each("selector_weights_newest_version", "newest for {}"),
        ),
        series("Age", "Since the served version was published.", "s", each("selector_weights_age_seconds")),
        series(
            "Clocks",
            "By how much the publisher's clock is ahead of the sidecar's, negative if it is behind.",
            "s",
            each("selector_weights_clock_skew_seconds"),
        ),
        series(
            "Lag",
            "Steps between trainer and served weights, at the last request that named its step.",
            "short",
            each("selector_weights_lag_steps"),
        ),
        series(
            "State of sync",
            "1 for the state that it is in.",
            "short",
            (f"sum by (state) (selector_weights_sync_state{{{S}}})", "{{state}}"),
            stack=True,
        ),
        series("Versions seen", "By what became of them.", "cps", rate_by("selector_weights_sync_total", "result")),
        series(
            "Mean by phase",
            "Fetching and verifying, uploading, a probe batch, the canary, the swap.",
            "s",
            (mean("selector_weights_sync_duration_seconds", "phase"), "{{phase}}"),
            stack=True,
        ),
        series("Traffic", "Weights fetched.", "Bps", (rate("selector_weights_sync_bytes_total"), "fetched")),
        series(
            "Canary",
            "Largest difference of an embedding's entry between trainer and sidecar.",
            "short",
            each("selector_canary_max_abs_error"),
        ),
        series(
            "Canaries",
            "Compared embeddings of the trainer's samples.",
            "cps",
            rate_by("selector_canary_checks_total", "result"),
        ),
        series(
            "Stale selections",
            "That met weights older than they accept, by what was done.",
            "reqps",
            rate_by("selector_stale_selections_total", "action"),
            width=12,
        ),
        series(
            "Source and pin",
            "Whether the source of weights answers and may evict them, and whether a version is pinned.",
            "bool",
            each("selector_weights_source_connected", "{} connected"),
            each("selector_weights_source_evicts", "{} evicts"),
            each("selector_weights_pinned", "{} pinned"),
            width=12,
        ),
    ],
    "Selection quality": [
        series(
            "Mean score",
            "Of each candidate by itself in the last selection, in nats: picked should lie above left.",
            "short",
            (f"avg by (criterion, of) (selector_score_mean_nats{{{S}}})", "{{criterion}} {{of}}"),
        ),
        series(
            "Objective",
            "Score per example of the last sub-batch, pairs included, and of a uniform one.",
            "short",
            (f"avg by (of) (selector_objective_nats{{{S}}})", "{{of}}"),
        ),
        series(
            "Median score",
            "Of all candidates by themselves.",
            "short",
            (quantile(0.5, SCORES, by="criterion, of"), "{{criterion}} {{of}}"),
        ),
        series(
            "Share of the best fifth",
            "Of all learnability of a super-batch; 20 %: alike, so that selecting brings nothing.",
            "percentunit",
            (mean("selector_score_top20_share_ratio", "criterion"), "{{criterion}}"),
        ),
        series(
            "Overlap with uniform",
            "Picks of the first chunk that a uniform draw takes too; 100 %: scores decide nothing.",
            "percentunit",
            (mean("selector_selection_overlap_uniform_ratio", "criterion"), "{{criterion}}"),
        ),
        panel(
            "heatmap",
            "Scores of picks",
            "How many picks per second have which score, in nats.",
            "short",
            (rate(f"{SCORES}_bucket", 'of="picked"', "le"), "{{le}}"),
        ),
        series(
            "Neighbours",
            "Mean cosine of candidates that follow each other, and of random ones: equal if the stream is shuffled.",
            "short",
            (f"avg by (of) (selector_image_cosine_mean{{{S}}})", "{{of}}"),
            width=12,
        ),
        series(
            "Near-duplicates",
            "Picks that have a near-duplicate among the candidates.",
            "percentunit",
            each("selector_near_duplicate_picks_ratio"),
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
    "Trainer": [
        series(
            "Steps",
            "Sub-batches that trainers were given, per second.",
            "cps",
            rate_by("selector_client_steps_total", "instance", of=T),
        ),
        series(
            "Waiting",
            "Share of a trainer's time that it waits for its batches.",
            "percentunit",
            (f"{WAIT} / ({WAIT} + {STEP})", "{{instance}}"),
        ),
        series(
            "Fallbacks",
            "Uniform batches instead of selections, by reason.",
            "reqps",
            rate_by("selector_client_fallbacks_total", "reason", of=T),
        ),
        series(
            "Selections",
            "Mean time as the trainer sees it, network and queue included.",
            "s",
            (f"{rate(f'{CLIENT}_request_seconds_total', of=T)} / {rate(f'{CLIENT}_requests_total', of=T)}", "mean"),
        ),
        series(
            "Breaker and retries",
            "1 while nothing is asked, and requests that were sent again.",
            "short",
            each("selector_client_breaker_open", "{} open", of=T),
            (rate("selector_client_retries_total", by="instance", of=T), "{{instance}} retries"),
        ),
        series(
            "Lag",
            "Steps between trainer and the weights that made its last batch.",
            "short",
            each("selector_client_weights_lag_steps", of=T),
        ),
        series(
            "Published",
            "The last version of the weights that was published.",
            "short",
            each("selector_client_published_version", of=T),
            width=12,
        ),
        series(
            "Publishing",
            "Versions published, replaced by newer ones before, failed, and refused by sidecars.",
            "cps",
            (rate("selector_client_published_total", by="instance", of=T), "{{instance}} published"),
            (rate("selector_client_superseded_total", by="instance", of=T), "{{instance}} superseded"),
            (FAILURES, "{{instance}} failed"),
            (rate("selector_client_refusals_total", by="instance", of=T), "{{instance}} refused"),
            width=12,
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    return {
        "uid": "selector",
        "title": "Selector",
        "description": "Data selection for contrastive training: health, latency, weights, quality.",
        "tags": ["selector", "machine-learning"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("job", "Job", "label_values(selector_build_info, job)"),
                variable("instance", "Sidecar", 'label_values(selector_build_info{job=~"$job"}, instance)'),
                variable("trainer", "Trainer", "label_values(selector_client_requests_total, instance)"),
            ]
        },
        "annotations": {"list": []},
        "panels": laid_out(ROWS),
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=2) + "\n")
