"""A training loop that selects, publishes its weights and shows its metrics, and whose faults a test turns on."""

import threading
import time

from prometheus_client import CollectorRegistry, start_http_server
from selector_client import Canary, SelectingLoader, Selector, WeightPublisher
from selector_client.metrics import export

from support.model import WORDS, TwoTower, embed, samples
from support.processes import free_port

STEP_SECONDS = 0.1
SIZE = 40
POOL = 5
TAGS = ["birds", "maps"]


class ObservedTrainer:
    """Trains against one sidecar until `stop`. `publishing` is every how many steps; 0: not at all. With
    `wrong_canary` it says other embeddings than its model has. Metrics are at `address`."""

    def __init__(self, server, redis_url, run) -> None:
        self.publishing, self.wrong_canary, self.step = 5, False, 0
        self._model, self._other = TwoTower(5).eval(), TwoTower(6).eval()
        self._batches = [_super_batch(seed) for seed in range(POOL)]
        # Patient: it waits for a slow sidecar instead of going on without it.
        self.selector = Selector(server.address, timeout=60.0, filter_ratio=0.8, shared_memory=True)
        self.publisher = WeightPublisher(redis_url, run)
        self._loader = SelectingLoader(self._endless(), self.selector, deadline=60.0)
        registry = CollectorRegistry()
        export(selector=self.selector, loader=self._loader, publisher=self.publisher, registry=registry)
        port = free_port()
        self._metrics, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
        self.address = f"127.0.0.1:{port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(70)
        self._metrics.shutdown()
        self.publisher.close(5)
        self.selector.close()

    def _endless(self):
        while not self._stop.is_set():
            yield from self._batches

    def _train(self) -> None:
        for _ in self._loader:
            self.step += 1
            time.sleep(STEP_SECONDS)
            if self.publishing and self.step % self.publishing == 0:
                self.publisher.publish(self.step, self._model, self._canary())
            if self._stop.is_set():
                return

    def _canary(self) -> Canary:
        pixels, tokens = (inputs[:4] for inputs in samples(SIZE, 0))
        embedded = embed(self._other if self.wrong_canary else self._model, pixels, tokens)
        return Canary(pixels, tokens, embedded.image, embedded.text)


def _super_batch(seed):
    pixels, tokens = samples(SIZE, seed)
    tags = [TAGS[row % len(TAGS)] for row in range(SIZE)]
    captions = [" ".join([tag, *(WORDS[token] for token in row)]) for tag, row in zip(tags, tokens, strict=True)]
    return {"images": pixels, "texts": captions, "ids": list(range(seed * SIZE, (seed + 1) * SIZE)), "tags": tags}
