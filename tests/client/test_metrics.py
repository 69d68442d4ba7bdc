"""The client's counters as Prometheus reads them."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.metrics import export
from support.model import samples
from support.processes import free_port


def scraped(registry):
    text = generate_latest(registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_what_is_counted_is_shown(server, redis_url, run_name):
    registry = CollectorRegistry()
    images, texts = samples(20)
    with (
        Selector(server.address, filter_ratio=0.8) as selector,
        WeightPublisher(redis_url, run_name) as publisher,
    ):
        loader = SelectingLoader([(images, texts)] * 3, selector)
        export(selector=selector, loader=loader, publisher=publisher, registry=registry)
        assert scraped(registry)[("selector_client_requests_total",)] == 0
        assert len(list(loader)) == 3
        publisher.publish(1, {"w": np.float32(1)})
        assert publisher.flush()
        values = scraped(registry)
        with pytest.raises(ValueError, match="Duplicated"):
            export(selector=selector, registry=registry)
    assert values[("selector_client_requests_total",)] == values[("selector_client_steps_total",)] == 3
    assert values[("selector_client_picks_total",)] == 12
    assert values[("selector_client_wait_seconds_total",)] == loader.wait_seconds > 0
    assert values[("selector_client_published_version",)] == publisher.last_version
    assert values[("selector_client_breaker_open",)] == 0


def test_fallbacks_are_told_apart():
    registry = CollectorRegistry()
    with Selector(f"127.0.0.1:{free_port()}", policy="independent") as selector:
        export(selector=selector, registry=registry)
        for _ in range(5):
            selector.select_losses(*np.random.default_rng(0).random((2, 50), dtype=np.float32))
        values = scraped(registry)
    assert values[("selector_client_fallbacks_total", "unavailable")] == 3
    assert values[("selector_client_fallbacks_total", "breaker_open")] == 2
    assert values[("selector_client_breaker_open",)] == 1
