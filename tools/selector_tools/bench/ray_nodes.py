"""A Ray cluster of several small nodes on this machine, whose workers and nodes can be killed."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OBJECT_STORE_BYTES = 100 << 20  # little passes through it; the least that Ray takes is three quarters of that
# A busy machine takes long to start a worker, which Ray would give up after a minute.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_register_timeout_seconds": "300",
}


class Nodes:
    """A head and other nodes, each with so many CPUs."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address

    def add(self, cpus: int, gpus: int = 0) -> Any:
        """Starts one more node, which the cluster knows after that."""
        return self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=_OBJECT_STORE_BYTES)

    def kill(self, node: Any) -> None:
        """Kills a node and all workers on it, without a word to anybody."""
        self._cluster.remove_node(node, allow_graceful=False)

    def workers(self, node: Any = None) -> list[int]:
        """Returns the process ids of the workers that score, on a node or (None) on the head."""
        node = node or self._cluster.head_node
        raylet = node.all_processes["raylet"][0].process.pid
        return [pid for pid, parent, name in _processes() if parent == raylet and "ray::" in name and "Scorer" in name]

    def kill_worker(self, node: Any = None) -> bool:
        """Kills one worker that scores, if there is one."""
        for pid in self.workers(node):
            os.kill(pid, signal.SIGKILL)
            return True
        return False


@contextmanager
def nodes(cpus: int, gpus: int = 0) -> Iterator[Nodes]:
    """Yields a cluster whose head has so many CPUs and GPUs; it ends with the block. Who joins it must be this user."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - nobody else needs the extra

    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ |= _ENVIRONMENT
    head = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yields number, parent and command line of every process that there is."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
        yield int(folder.name), parent, command
