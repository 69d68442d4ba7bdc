"""A sidecar that is asked all the time answers with a whole version, whatever becomes of the trainers."""

import subprocess
import threading

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from selector_proto.weights.layout import Keys
from support.model import TwoTower, as_published, plan, samples
from support.processes import eventually, spawn
from support.redis_servers import valkey_server
from support.wire import raw

PIXELS, IDS = samples(30)
# Beside the model: what no graph takes, so that a version has many chunks.
BALLAST = {"ballast": np.zeros(4_000_000, np.float32)}


class Asking:
    """Selects without end, and knows which model each answer must come from: the trainer's step is its seed."""

    def __init__(self, server, bundles) -> None:
        self.server, self.bundles, self.answers = server, bundles, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        while not self._stop.is_set():
            reply = self.server.select(raw(PIXELS, IDS, seed=3))
            self.answers.append((reply.weights.trainer_step, list(reply.indices)))

    def goes_on(self) -> None:
        """Some more answers come."""
        seen = len(self.answers)
        eventually(lambda: len(self.answers) > seen + 3)

    def check(self, *steps) -> None:
        """Every answer was that of the model it named, and these were all that it named."""
        assert {step for step, _ in self.answers} == set(steps)
        for step in steps:
            model = as_published(TwoTower(step)) if step else self.bundles.learner
            wanted = self.bundles.picks(PIXELS, IDS, plan(6, 6, seed=3), learner=model)
            assert all(picks == wanted for its_step, picks in self.answers if its_step == step)


def state(seed):
    return {name: value.numpy() for name, value in TwoTower(seed).state_dict().items()}


@pytest.fixture
def asking(sidecar, bundles, run_name):
    def start(url) -> Asking:
        server = sidecar(bundles.flags | {"redis": url, "run": run_name, "weights_poll_seconds": 0.05})
        return Asking(server, bundles)

    return start


def serving(asking, step) -> None:
    eventually(lambda: asking.server.status().serving.trainer_step == step, 20, lambda: str(asking.server.status()))
    asking.goes_on()


def test_a_redis_without_memory(asking, run_name):
    server = valkey_server(config={"maxmemory": "24mb", "maxmemory-policy": "noeviction"})
    try:
        with asking(server.connection_url) as asked, WeightPublisher(server.connection_url, run_name) as publisher:
            asked.goes_on()
            publisher.publish(11, state(11))
            serving(asked, 11)
            publisher.publish(12, state(12) | {"ballast": np.zeros(20_000_000, np.float32)})
            eventually(lambda: publisher.failures)
            asked.goes_on()
            publisher.publish(13, state(13))
            serving(asked, 13)
            asked.check(0, 11, 13)
    finally:
        server.stop()


def test_a_second_publisher(asking, redis_url, run_name):
    with (
        asking(redis_url) as asked,
        WeightPublisher(redis_url, run_name) as first,
        WeightPublisher(redis_url, run_name) as second,
    ):
        asked.goes_on()
        first.publish(21, state(21))
        serving(asked, 21)
        second.publish(22, state(22))
        serving(asked, 22)
        first.publish(23, state(23) | BALLAST)
        eventually(lambda: first.fenced)
        asked.goes_on()
        second.publish(24, state(24))
        serving(asked, 24)
        asked.check(0, 21, 22, 24)


_TRAINER = """
import sys
import numpy as np
from selector_client import WeightPublisher

publisher = WeightPublisher(sys.argv[1], sys.argv[2])
store = publisher._shipper._store
send = store.put_all


def half(items, ttl):
    def some():
        for index, item in enumerate(items):
            if index == 4 and publisher.published:
                print("in the middle", flush=True)
                sys.stdin.read()
            yield item

    send(some(), ttl)


store.put_all = half
for step in (31, 32):
    publisher.publish(step, dict(np.load(sys.argv[3])))
    publisher.flush()
"""


def test_a_publisher_that_is_killed_and_its_successor(asking, redis_url, run_name, tmp_path):
    np.savez(tmp_path / "state.npz", **state(31), **BALLAST)
    with asking(redis_url) as asked:
        asked.goes_on()
        trainer = spawn(
            "-c", _TRAINER, redis_url, run_name, tmp_path / "state.npz", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert trainer.stdout.readline() == b"in the middle\n"
        trainer.kill()
        trainer.wait(10)
        serving(asked, 31)
        assert redis.Redis.from_url(redis_url).get(Keys(run_name).pointer) == b"1"
        with WeightPublisher(redis_url, run_name) as successor:
            successor.publish(33, state(33))
            serving(asked, 33)
        asked.check(0, 31, 33)
