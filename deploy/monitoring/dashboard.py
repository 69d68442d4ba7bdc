"""Writes dashboard.json: `python deploy/monitoring/dashboard.py`."""

import json
from pathlib import Path
from typing import Any

import sidecar_rows
import training_rows
from grafana import laid_out, variable

OUT = Path(__file__).with_name("dashboard.json")
ORDER = (
    "Is it healthy?",
    "Latency by stage",
    "Queue and rejections",
    "Weights",
    "Selection quality",
    "What is picked",
    "Encoder, cache, memory",
    "Trainer",
)
ROWS = sidecar_rows.ROWS | training_rows.ROWS


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
        "panels": laid_out({name: ROWS[name] for name in ORDER}),
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=2) + "\n")
