"""Panels about weights, about what is picked, and about trainers. Each row lists its panels from left to right."""

from typing import Any

from grafana import S, T, each, mean, panel, quantile, rate, rate_by, series

SCORES = "selector_score_nats"
WAIT, STEP = (rate(f"selector_client_{what}_seconds_total", by="instance", of=T) for what in ("wait", "step"))
CLIENT = "selector_client"
FAILURES = rate("selector_client_publish_failures_total", by="instance", of=T)


def against(kind: str) -> str:
    """Returns the query for how much more often than all candidates those of a tag, or with a word, are picked."""
    which = f'kind="{kind}"'
    picked, seen = (rate(f"selector_slice_{of}_total", which, "slice") for of in ("picked", "candidates"))
    all_picked, all_seen = (rate(f"selector_slice_{of}_total", which) for of in ("picked", "candidates"))
    return f"({picked} / {seen}) / scalar({all_picked} / {all_seen})"


ROWS: dict[str, list[dict[str, Any]]] = {
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
    "What is picked": [
        series(
            "Tags, against the pool",
            "The share of a tag's candidates that is picked, over that of all: the five highest and five lowest. "
            "1 is neither more nor less. Needs inspect_content and inspect_metrics.",
            "short",
            (f"topk(5, {against('tag')})", "{{slice}}"),
            (f"bottomk(5, {against('tag')})", "{{slice}}"),
        ),
        series(
            "Caption words, against the pool",
            "The same by word of the caption.",
            "short",
            (f"topk(5, {against('word')})", "{{slice}}"),
            (f"bottomk(5, {against('word')})", "{{slice}}"),
        ),
        series(
            "Not looked at",
            "Selections per second that the inspector let go, as it was behind: no selection waits for it.",
            "reqps",
            (rate("selector_unobserved_selections_total"), "not looked at"),
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
