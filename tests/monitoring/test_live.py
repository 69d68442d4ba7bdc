"""A real Prometheus scrapes real sidecars and a trainer: every query returns data, and each alert fires in its fault
and not otherwise. Minutes long: `make monitoring-test` runs it.

Time runs SCALE times faster than in the rule file: windows and `for` are divided by it, as are the two thresholds in
seconds. Everything else about the rules is as it is served.
"""

import contextlib
import itertools
import math
import os
import threading
import time

import grpc
import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import samples
from support.observed_trainer import ObservedTrainer
from support.processes import SlowClient, eventually
from support.prometheus import MONITORING, Prometheus, alerts, faster, needs, queries, selectors, substituted
from support.wire import embeddings, raw, some_embeddings, some_losses

pytestmark = [
    pytest.mark.skipif(os.environ.get("MONITORING_TEST") != "1", reason="takes minutes: make monitoring-test runs it"),
    pytest.mark.timeout(600),
]

SCALE = 40
THRESHOLDS = {"SelectorWeightsStale": ("> 600", "> 12"), "SelectorSlow": ("> 5", "> 2")}
# A window of the dashboard: a dozen scrapes.
INTERVAL = "12s"
STALL_SECONDS = 1
# Of a selection that takes long: longer than those thresholds, with several in a window.
SLOW_SECONDS = 4.5


class Site:
    """Two sidecars, one of which serves the trainer, and Prometheus."""

    def __init__(self, start, bundles, redis_url, run, folder) -> None:
        memory = folder / "payloads"
        following = {"redis": redis_url, "run": run, "weights_poll_seconds": 0.2, "shared_memory_dir": memory}
        cache = {"cache": folder / "cache", "cache_bytes": 1 << 20}
        inspect = {"inspect": True, "inspect_content": True, "inspect_metrics": True}
        # One thread: two of them wait for each other on a busy machine, and all is slow.
        self.main = start(bundles.flags | following | cache | inspect | {"stall_seconds": STALL_SECONDS, "threads": 1})
        self.narrow = start({"max_pending_requests": 1, "threads": 1})
        self.trainer = ObservedTrainer(self.main, redis_url, run)
        self.targets = {
            "selector": [f"127.0.0.1:{one.metrics_port}" for one in (self.main, self.narrow)],
            "trainer": [self.trainer.address],
        }
        self.main_name, self.narrow_name = self.targets["selector"]
        rules = faster((MONITORING / "alerts.yaml").read_text(), SCALE, THRESHOLDS)
        self.prometheus = Prometheus(folder, self.targets, rules)

    def close(self) -> None:
        self.trainer.stop()
        self.prometheus.stop()

    def firing(self) -> set[tuple[str, str]]:
        return self.prometheus.alerts()

    def fires(self, *expected: tuple[str, str], seconds=60) -> None:
        """All of these and, when they do, no other."""
        eventually(lambda: set(expected) <= self.firing(), seconds, lambda: f"firing: {self.firing()}")
        assert self.firing() == set(expected)

    def calm(self, seconds=60) -> None:
        eventually(lambda: not self.firing(), seconds, lambda: f"firing: {self.firing()}")


@pytest.fixture(scope="module")
def site(start_sidecars, bundles, redis_url, tmp_path_factory):
    needs("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with start_sidecars() as start:
        one = Site(start, bundles, redis_url, f"monitoring-{time.time_ns()}", folder)
        try:
            yield one
        finally:
            one.close()


@contextlib.contextmanager
def load(server, make_request, pause=0.05):
    """Requests one after the other, whatever they are answered."""
    stop = threading.Event()

    def ask():
        while not stop.wait(pause):
            with contextlib.suppress(grpc.RpcError):
                server.select(make_request(), timeout=120)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(120)


def test_nothing_fires_while_all_is_well(site):
    with load(site.narrow, some_losses, 0.2):
        eventually(lambda: site.trainer.publisher.last_version >= 3, 60)
        until = time.monotonic() + 25
        while time.monotonic() < until:
            assert not site.firing()
            time.sleep(0.5)
        assert not site.prometheus.alerts("pending")
        for target in itertools.chain(*site.targets.values()):
            [(_, scrapes)] = site.prometheus.query(f'sum_over_time(up{{instance="{target}"}}[25s])')
            assert scrapes > 10


def test_every_query_of_the_dashboard_returns_data(site):
    with load(site.narrow, some_losses, 0.2):
        eventually(lambda: len(site.prometheus.query("selector_objective_nats")) > 2)
        time.sleep(4)
        for title, expression in queries():
            rows = site.prometheus.query(substituted(expression, INTERVAL))
            assert rows, f"{title}: {expression}"
            assert any(math.isfinite(value) for _, value in rows), f"{title}: {expression}"


def test_every_expression_of_an_alert_looks_at_data(site):
    for rule in alerts():
        for selector in selectors(rule["expr"]):
            # From the time that this sidecar has been up; the last alert's own subject is what must be there.
            assert site.prometheus.query(selector.prettify()), f"{rule['alert']}: {selector.prettify()}"


def test_stale_weights_and_rejections(site):
    """The trainer stops publishing; another sidecar, with one permit, is asked twice at a time."""
    site.trainer.publishing = 0
    slow = SlowClient(site.narrow, timeout=120)
    site.narrow.wait_pending(1)
    with load(site.narrow, some_losses):
        site.fires(("SelectorWeightsStale", site.main_name), ("SelectorRejecting", site.narrow_name))
    slow.leave()
    site.trainer.publishing = 5
    site.calm()


def test_a_wrong_canary_and_a_full_cache(site):
    """Weights come with embeddings of another model, and more samples than the cache holds."""
    site.trainer.wrong_canary = True
    canary = ("SelectorCanaryFailed", site.main_name)
    unheard = ("SelectorTrainerUnheard", site.trainer.address)
    site.fires(canary, ("SelectorWeightsNotTaken", site.main_name), unheard)
    version = site.main.status().serving.version
    site.trainer.wrong_canary = False
    eventually(lambda: site.main.status().serving.version > version)
    site.calm()
    problem = ("SelectorCacheProblems", site.main_name)
    for first in itertools.count(10_000, 2000):
        site.main.select(_named(first, 2000))
        if problem in site.firing():
            break
        assert first < 200_000, "the cache never became full"
    assert site.firing() == {problem}
    site.calm()


def _named(first, count):
    request = raw(*samples(count, seed=first), policy="independent")
    request.selection.sample_ids.integers.CopyFrom(request.add(np.arange(first, first + count)))
    return request


def test_candidates_that_cannot_be_used(site):
    bad = {"bad_samples": pb.BAD_SAMPLES_EXCLUDE}
    bad["exclusions"] = [pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[2, 7])]
    with load(site.narrow, lambda: some_losses(**bad)):
        site.fires(("SelectorExcluded", site.narrow_name))
    site.calm()


def _long(candidates):
    """A draw whose time grows with the square of the candidates."""
    return embeddings(*some_embeddings(candidates, 64), chunks=64, sub_batch_size=candidates // 2)


def test_slow_selections_and_a_stuck_worker(site):
    """Large selections keep the worker in one task for longer than stall_seconds; the trainer waits behind them."""
    size, seconds = 1000, 0.0
    while seconds < 0.7 * SLOW_SECONDS:
        size = round(size * min(2.0, (SLOW_SECONDS / seconds) ** 0.5)) if seconds else size
        started = time.monotonic()
        site.main.select(_long(size), timeout=120)
        seconds = time.monotonic() - started
    with load(site.main, lambda: _long(size), 0.0):
        slow, waits = ("SelectorSlow", site.main_name), ("SelectorTrainerWaits", site.trainer.address)
        stuck = ("SelectorWorkerDown", site.main_name)
        # The worker is well for a moment between two tasks.
        seen = set()
        eventually(lambda: seen.update(site.firing()) or {slow, waits, stuck} <= seen, 120, lambda: str(seen))
        assert seen == {slow, waits, stuck}
    site.calm()


def test_a_killed_sidecar(site):
    site.main.process.kill()
    site.fires(("SelectorDown", site.main_name), ("SelectorFallbacks", site.trainer.address))
    steps = site.trainer.step
    eventually(lambda: site.trainer.step > steps + 5)
