"""Several processes fetch one version at once, as several sidecars do."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any

import redis
from selector_client import WeightPublisher

from selector_tools.bench.learners import Learner

RUN = "readers"
WAIT_SECONDS = 120.0


def measured(module: Learner, url: str, counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """Returns for each count of readers the medians of the seconds until all have the version, of their summed rate,
    and of the Redis server's processor time. The first fetch of each process warms up."""
    with WeightPublisher(url, RUN) as publisher:
        publisher.publish(1, module)
        if not publisher.flush(WAIT_SECONDS):
            raise RuntimeError(f"publishing failed: {publisher.last_error}")
        return [_together(url, count, repeats) for count in counts]


def _together(url: str, count: int, repeats: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    readers = [context.Process(target=_reader, args=(url, repeats, barrier, sender), daemon=True) for _, sender in ends]
    client = redis.Redis.from_url(url)
    seconds, processor, size = [], [], 0
    try:
        for reader, (_, sender) in zip(readers, ends, strict=True):
            reader.start()
            sender.close()  # a dead reader then ends the wait for it
        for repeat in range(1 + repeats):
            before = _processor_seconds(client)
            barrier.wait(WAIT_SECONDS)
            started = time.perf_counter()  # all processes of a host share this clock
            finished = [receiver.recv() for receiver, _ in ends]
            if repeat:
                seconds.append(max(moment for moment, _ in finished) - started)
                processor.append(_processor_seconds(client) - before)
            size = finished[0][1]
    finally:
        for reader in readers:
            reader.kill()
            reader.join()
        client.close()
    return {
        "readers": count,
        "seconds": median(seconds),
        "gigabytes_per_second": count * size / median(seconds) / 1e9,
        "redis_cpu_seconds": median(processor),
        "redis_cpu_seconds_per_gigabyte": median(processor) / (count * size / 1e9),
    }


def _reader(url: str, repeats: int, barrier: Barrier, sender: Connection) -> None:
    from selector_server.weights.fetcher import Fetcher  # noqa: PLC0415 - in the new process only

    fetcher = Fetcher(url, RUN, 1 << 36)
    version = fetcher.newest()
    for _ in range(1 + repeats):
        barrier.wait(WAIT_SECONDS)
        fetched = fetcher.fetch(version, fetcher.manifest(version))
        sender.send((time.perf_counter(), fetched.manifest.payload_bytes))
    fetcher.close()


def _processor_seconds(client: Any) -> float:
    usage = client.info("cpu")
    return float(usage["used_cpu_user"] + usage["used_cpu_sys"])
