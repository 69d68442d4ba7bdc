"""`reference score --ray` on real Ray: two nodes on this machine, of which workers, nodes and drivers are killed."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from selector_tools.pools import scores
from support.pools import shard
from support.processes import eventually

pytest.importorskip("ray", reason="needs the extra ray")
from selector_tools.bench.ray_nodes import nodes

pytestmark = pytest.mark.timeout(900)
SHARDS, PAIRS = 24, 100
IDS = Counter(f"s{number:02}/{row:04}" for number in range(SHARDS) for row in range(PAIRS))


@pytest.fixture(scope="module")
def cluster():
    with nodes(cpus=1) as found:
        yield found


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    for number in range(SHARDS):
        shard(folder / f"s{number:02}.tar", PAIRS, number)
    return folder


class Driver:
    """`selector reference score --ray` in a process of its own."""

    def __init__(self, bundles, pool, out, address, *more):
        flags = {"--reference": bundles.reference_path, "--pool": pool, "--out": out, "--ray": address}
        # One pair at a time, so that a shard takes long enough to be killed in its midst.
        words = [str(word) for flag in (flags | {"--batch": 1}).items() for word in flag]
        command = [sys.executable, "-m", "selector_tools.cli", "reference", "score", "--json", *words, *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def said(self) -> dict:
        out, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, err
        return json.loads(out)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def files(out):
    return scores.files_in(str(out)) if out.exists() else []


def ids(out) -> Counter:
    return Counter(name for file in files(out) for name in scores.read_ids(file))


def test_killed_worker_and_node_and_driver(tmp_path, bundles, pool, cluster):
    """What is killed in mid-run loses nothing and repeats nothing."""
    out, second = tmp_path / "out", cluster.add(cpus=1)
    driver = Driver(bundles, pool, out, cluster.address, "--workers", "2")
    eventually(lambda: len(files(out)) >= 2, seconds=400)
    assert cluster.kill_worker()
    driver.kill()
    kept = {file: os.stat(file).st_mtime_ns for file in files(out)}
    assert 2 <= len(kept) < SHARDS
    driver = Driver(bundles, pool, out, cluster.address, "--workers", "2")
    eventually(lambda: len(files(out)) >= len(kept) + 2 and cluster.workers(second), seconds=400)
    assert len(files(out)) < SHARDS
    cluster.kill(second)
    figures = driver.said()
    assert ids(out) == IDS
    assert {file: os.stat(file).st_mtime_ns for file in kept} == kept
    assert figures["pairs"] == SHARDS * PAIRS
    assert figures["new_shards"] == SHARDS - len(kept)
