"""`reference score --ray` on real Ray: two nodes on this machine, of which workers, nodes and drivers are killed."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from selector_tools import cli
from selector_tools.pools import scores
from selector_tools.processes import free_port
from support.disks import BALLAST, fill_up, small_disk
from support.pools import shard
from support.processes import eventually

pytest.importorskip("ray", reason="needs the extra ray")
from selector_tools.bench import pool_kills
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


class Driver(pool_kills.Driver):
    """It scores one pair at a time, so that a shard takes long enough to be killed in its midst."""

    def __init__(self, bundles, pool, out, address, *more):
        super().__init__(bundles.reference_path, pool, out, address, "--batch", "1", *more)


def files(out):
    return scores.files_in(str(out)) if out.exists() else []


def ids(out) -> Counter:
    return Counter(name for file in files(out) for name in scores.read_ids(file))


def test_killed_worker_and_node_and_driver(tmp_path, bundles, pool, cluster):
    """What is killed in mid-run loses nothing and repeats nothing."""
    out, second = tmp_path / "out", cluster.add(cpus=1)
    driver = Driver(bundles, pool, out, cluster.address, "--workers", "2")
    eventually(lambda: len(files(out)) >= 2, seconds=400)
    driver.kill()
    kept = {file: os.stat(file).st_mtime_ns for file in files(out)}
    assert 2 <= len(kept) < SHARDS
    driver = Driver(bundles, pool, out, cluster.address, "--workers", "2")
    eventually(lambda: len(files(out)) >= len(kept) + 2, seconds=400)
    assert cluster.kill_worker()
    eventually(lambda: len(files(out)) >= len(kept) + 4 and cluster.workers(second), seconds=400)
    assert len(files(out)) < SHARDS
    cluster.kill(second)
    figures = driver.said()
    assert ids(out) == IDS
    assert {file: os.stat(file).st_mtime_ns for file in kept} == kept
    assert figures["pairs"] == SHARDS * PAIRS
    assert figures["new_shards"] == SHARDS - len(kept)


def refused(capsys, bundles, pool, out, address) -> str:
    command = ["--reference", bundles.reference_path, "--pool", pool, "--out", out, "--ray", address]
    assert cli.main(["reference", "score", *map(str, command)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_damaged_shard_is_named_with_its_node_and_others_stay(capfd, tmp_path, bundles, cluster):
    (tmp_path / "pool").mkdir()
    for number in range(3):
        shard(tmp_path / "pool" / f"s{number}.tar", 5, number)
    whole = (tmp_path / "pool" / "s2.tar").read_bytes()
    (tmp_path / "pool" / "s2.tar").write_bytes(whole[:2000])
    line = refused(capfd, bundles, tmp_path / "pool", tmp_path / "out", cluster.address)
    assert re.search(r"--pool is .*s2\.tar.*; .* \(on node [\d.]+\)$", line), line
    (tmp_path / "pool" / "s2.tar").write_bytes(whole)
    assert Driver(bundles, tmp_path / "pool", tmp_path / "out", cluster.address).said()["pairs"] == 15


def test_a_full_disk_is_told_in_one_line_and_the_rest_comes_when_there_is_room(capfd, tmp_path, bundles, pool, cluster):
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        fill_up(disk, leave=100_000)
        process = Driver(bundles, pool, disk / "out", cluster.address).process
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert os.strerror(errno.ENOSPC) in said.splitlines()[-1], said
        kept = len(files(disk / "out"))
        assert 0 < kept < SHARDS
        (disk / BALLAST).unlink()
        figures = Driver(bundles, pool, disk / "out", cluster.address).said()
        assert ids(disk / "out") == IDS
        assert figures["new_shards"] == SHARDS - kept


def test_workers_share_a_gpu(tmp_path, bundles, pool, cluster):
    """Ray believes that a node has one. Where there is none, a worker that is given a part of it says so."""
    node = cluster.add(cpus=6, gpus=1)
    flags = ("--device", "cuda", "--threads", "1", "--workers-per-gpu", "6", "--workers", "6")
    command = Driver(bundles, pool, tmp_path / "out", cluster.address, *flags).process
    try:
        _, said = command.communicate(timeout=300)
    finally:
        command.kill()
        cluster.kill(node)
    if torch.cuda.is_available():
        assert command.returncode == 0, said
        return
    assert command.returncode == 2, said
    assert re.search(r"device is cuda; .*\(on node [\d.]+\)$", said.splitlines()[-1]), said


def test_nobody_answers(capfd, tmp_path, bundles, pool):
    line = refused(capfd, bundles, pool, tmp_path / "out", "127.0.0.1:1")
    assert "--ray is 127.0.0.1:1; nobody answers: " in line


# A head that says of itself that it is of another version.
OTHER_VERSION = """
import sys, ray
ray.__version__ = "2.9.9"
from ray.scripts.scripts import main
sys.argv = ["ray", "start", "--head", "--port", sys.argv[1], "--num-cpus", "0", "--object-store-memory", "100000000",
            "--include-dashboard", "false", "--block"]
main()
"""


def test_a_cluster_of_another_version(capfd, tmp_path, bundles, pool, cluster):
    port = str(free_port())
    head = subprocess.Popen(
        [sys.executable, "-c", OTHER_VERSION, port], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        line = next(filter(None, (re.search(r"--address='([^']+)'", line) for line in head.stdout)))
        said = refused(capfd, bundles, pool, tmp_path / "out", line[1])
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.communicate(timeout=60)
    assert f"--ray is {line[1]}; Version mismatch: The cluster was started with: Ray: 2.9.9" in said
