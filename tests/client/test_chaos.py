"""A training run while its sidecar and its Redis are killed, stopped and started again at random."""

import random
import signal
import statistics
import threading
import time
from collections import Counter

import pytest
from selector_client import SelectingLoader, Selector, WeightPublisher
from selector_client.selecting import transport
from support.model import TwoTower, samples
from support.processes import free_port
from support.redis_servers import valkey_server

STEPS, STEP_SECONDS, TIMEOUT = 400, 0.06, 1.0
SIZE, SUPER_BATCH = 2000, 40
SEED = 20


class Data:
    """Samples that know their place."""

    pixels, tokens = samples(SIZE, 9)

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return {"image": self.pixels[index], "index": index}

    def view(self, indices):
        return {"images": self.pixels[indices], "texts": self.tokens[indices]}


class Chaos(threading.Thread):
    """Does harm, and undoes it, until it is told to stop."""

    def __init__(self, sidecar, flags, redis_port):
        super().__init__()
        self.random, self.calm, self.done = random.Random(SEED), threading.Event(), []
        self._start_sidecar, self._flags, self.port = sidecar, flags, free_port()
        self.sidecar = sidecar(flags, port=self.port)
        self._redis_port = redis_port
        self.redis = self._start_redis()

    def _start_redis(self):
        return valkey_server(self._redis_port)

    def run(self):
        harms = []
        while not self.calm.wait(self.random.uniform(1.0, 2.5)):
            # Every kind in each round, in an order of its own.
            harms = harms or self.random.sample([self.kill_sidecar, self.stop_sidecar, self.kill_redis], 3)
            harm = harms.pop()
            self.done.append(harm.__name__)
            harm(self.random.uniform(0.2, 1.5))

    def is_enough(self, steps):
        """A sidecar takes long to start on a busy machine: the run goes on until every harm was done."""
        return steps >= STEPS and len(set(self.done)) == 3

    def kill_sidecar(self, seconds):
        self.sidecar.process.kill()
        self.sidecar.process.wait()
        time.sleep(seconds)
        self.sidecar = self._start_sidecar(self._flags, port=self.port)

    def stop_sidecar(self, seconds):
        self.sidecar.signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.sidecar.signal(signal.SIGCONT)

    def kill_redis(self, seconds):
        self.redis.terminate()
        time.sleep(seconds)
        self.redis = self._start_redis()


@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "shared memory"])
def test_a_run_ends_by_itself_with_all_its_steps(sidecar, bundles, run_name, tmp_path, monkeypatch, shared_memory):
    monkeypatch.setattr(transport, "MIN_BYTES", 1024)  # the samples are small
    redis_port, data, model = free_port(), Data(), TwoTower(1)
    url = f"redis://127.0.0.1:{redis_port}"
    flags = bundles.flags | {"redis": url, "run": run_name, "weights_poll_seconds": 0.1}
    chaos = Chaos(sidecar, flags | ({"shared_memory_dir": tmp_path / "shm"} if shared_memory else {}), redis_port)
    sizes, repeated, epochs, waits = [], 0, [], []
    late = []  # how much longer than they should the trainer's own steps took: that is the machine
    try:
        with (
            Selector(f"127.0.0.1:{chaos.port}", timeout=TIMEOUT, filter_ratio=0.8, seed=1) as selector,
            WeightPublisher(url, run_name, every=10) as publisher,
        ):
            loader = SelectingLoader.over(data, selector, super_batch_size=SUPER_BATCH, view=data.view)
            chaos.start()
            while not chaos.is_enough(len(sizes)):
                epochs.append([])
                asked = time.monotonic()
                for batch in loader:
                    waits.append(time.monotonic() - asked)
                    indices = batch["index"].tolist()
                    sizes.append(len(indices))
                    repeated += len(indices) - len(set(indices))
                    epochs[-1] += indices
                    started = time.monotonic()
                    time.sleep(STEP_SECONDS)
                    late.append(time.monotonic() - started - STEP_SECONDS)
                    publisher.publish(len(sizes), model)
                    if chaos.is_enough(len(sizes)):
                        break
                    asked = time.monotonic()
    finally:
        chaos.calm.set()
        chaos.join()
        chaos.redis.terminate()
    progress, usual = loader.progress, statistics.median(waits)
    print(f"{progress} while {', '.join(f'{n} x {harm}' for harm, n in Counter(chaos.done).items())}")  # noqa: T201 - its report
    steps = len(sizes)
    assert sizes == [SUPER_BATCH // 5] * steps
    assert repeated == 0
    assert all(len(epoch) == len(set(epoch)) for epoch in epochs), "no sample twice in an epoch"
    assert progress.steps == steps
    assert 0 < progress.fallbacks.total() < steps, "some selections failed, some did not"
    assert max(waits) < 2.5 * TIMEOUT + 5 * max(late), "a timeout and its retries, never more"
    # What a selection takes by itself is the machine's business; what a fault costs is ours.
    assert sum(max(0.0, wait - 5 * usual) for wait in waits) < 2.0 * TIMEOUT * len(chaos.done) + 5 * sum(late)
