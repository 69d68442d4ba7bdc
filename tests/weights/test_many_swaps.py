"""A thousand versions under load."""

import threading
import time

from selector_client import WeightPublisher
from selector_tools.bench.memory import resident_bytes
from support.model import TwoTower, as_published, plan, samples
from support.wire import raw

PIXELS, IDS = samples(30)
SWAPS, SETTLED = 1000, 50


def test_a_thousand_swaps_under_load(sidecar, bundles, redis_url, run_name):
    """Every answer is that of the version it names, and memory does not grow."""
    server = sidecar(bundles.flags | {"redis": redis_url, "run": run_name, "weights_poll_seconds": 0.05})
    models = [TwoTower(70 + i) for i in range(2)]
    wanted = [bundles.picks(PIXELS, IDS, plan(6, 6, seed=3), learner=as_published(model)) for model in models]
    stop, answers, resident = threading.Event(), [], 0

    def ask():
        while not stop.is_set():
            reply = server.select(raw(PIXELS, IDS, seed=3))
            answers.append((reply.weights.version, list(reply.indices)))

    asking = threading.Thread(target=ask)
    with WeightPublisher(redis_url, run_name) as publisher:
        asking.start()
        try:
            for number in range(1, SWAPS + 1):
                publisher.publish(number, models[number % 2])
                assert publisher.flush(20)
                assert publisher.last_version == number
                deadline = time.monotonic() + 20
                while server.status().serving.version < number:
                    assert time.monotonic() < deadline, server.status()
                    time.sleep(0.002)
                if number == SETTLED:
                    resident = resident_bytes(server.process.pid)
        finally:
            stop.set()
            asking.join()
    assert server.status().swaps == SWAPS
    served = [(version, picks) for version, picks in answers if version]
    assert len(served) > 100
    assert all(picks == wanted[version % 2] for version, picks in served)
    assert resident_bytes(server.process.pid) <= 1.02 * resident
