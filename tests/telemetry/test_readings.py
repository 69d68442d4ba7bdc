"""Metrics that are read when they are scraped, and those that are told of many values at once."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.metric_names import of_server

from selector_server.encoding.device import Device
from selector_server.machine import resident
from selector_server.telemetry.metrics import Metrics
from selector_server.telemetry.quality_metrics import NATS, QualityMetrics
from selector_server.telemetry.readings import BulkHistogram, Readings


def scraped(registry) -> dict:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_a_bulk_histogram_is_one_to_prometheus():
    registry = CollectorRegistry()
    histogram = BulkHistogram("x_nats", "X.", ["of"], (-1.0, 0.5), registry)
    histogram.add(("a",), [2, 0, 1])
    histogram.add(("a",), [0, 4, 0])
    values = scraped(registry)
    assert [values[("x_nats_bucket", *sorted(key))] for key in (("-1.0", "a"), ("0.5", "a"), ("+Inf", "a"))] == [
        2,
        6,
        7,
    ]
    assert not {"x_nats_sum", "x_nats_count"} & {name for name, *_ in values}
    with pytest.raises(ValueError, match="zip"):
        histogram.add(("a",), [1, 1])


def test_readings_are_taken_at_each_scrape():
    registry = CollectorRegistry()
    readings = Readings("y_bytes", "Y.", "kind", registry)
    assert scraped(registry) == {}
    numbers = {"a": 1, "b": 2}
    readings.read = lambda: numbers
    assert scraped(registry) == {("y_bytes", "a"): 1, ("y_bytes", "b"): 2}
    numbers["a"] = 5
    assert scraped(registry)[("y_bytes", "a")] == 5


def test_one_selection_is_counted_by_picked_and_left():
    registry = CollectorRegistry()
    quality = QualityMetrics(registry)
    picked, left = [0] * (len(NATS) + 1), [0] * (len(NATS) + 1)
    picked[-1], left[0] = 2, 3
    quality.observe("learnability", (picked, 40.0), (left, -60.0), 0.3, None)
    values = scraped(registry)
    assert values[("selector_score_mean_nats", "learnability", "picked")] == 20
    assert values[("selector_score_mean_nats", "learnability", "left")] == -20
    assert values[("selector_score_nats_bucket", "+Inf", "learnability", "left")] == 3
    assert values[("selector_score_top20_share_ratio_sum", "learnability")] == 0.3
    assert ("selector_selection_overlap_uniform_ratio_sum", "learnability") not in values


def test_memory_of_this_process():
    kinds, limit = Device("cpu").memory(), Device("cpu").memory_limit()
    assert kinds.keys() == {"anonymous", "file", "shared"}
    assert 10 << 20 < sum(kinds.values()) < limit
    assert resident(Path("/nowhere")) == {}


def test_every_labelled_counter_begins_at_zero():
    """Prometheus sees no increase in a series' first value."""
    shown = {name for name, *_ in scraped(Metrics().registry)}
    for name, kind, labels, _ in of_server():
        if kind == "counter" and labels:
            assert name in shown, name
