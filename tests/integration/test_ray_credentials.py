"""Credentials that end while `reference score --ray` runs: a store that refuses the workers from then on."""

import re
from functools import partial

import pytest
from selector_tools.pools import scores
from support.pools import shard
from support.processes import eventually

pytest.importorskip("ray", reason="needs the extra ray")
from selector_tools.bench.pool_kills import driving
from selector_tools.bench.ray_nodes import nodes

pytestmark = pytest.mark.timeout(600)
SHARDS, PAIRS = 24, 50
BUCKET = "refused-in-mid-run"
POOL, OUT = f"s3://{BUCKET}/pool", f"s3://{BUCKET}/scores"


def test_they_end_the_run_in_one_line_and_it_goes_on_with_new_ones(store, tmp_path, bundles, monkeypatch):
    from moto.core.responses import settings

    store.create_bucket(Bucket=BUCKET)
    for number in range(SHARDS):
        file = shard(tmp_path / f"s{number}.tar", PAIRS, number)
        store.put_object(Bucket=BUCKET, Key=f"pool/s{number}.tar", Body=file.read_bytes())

    def written():
        return store.list_objects_v2(Bucket=BUCKET, Prefix="scores/").get("KeyCount", 0)

    with nodes(cpus=1) as cluster:
        start = partial(driving, bundles.reference_path, POOL, OUT, cluster.address)
        with start("--batch", "1") as driver, monkeypatch.context() as patch:
            command = driver.process
            eventually(lambda: written() or command.poll() is not None, seconds=300)
            patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # nobody's key is known from now on
            out, said = command.communicate(timeout=300)
        assert (command.returncode, out) == (2, ""), said
        line = said.splitlines()[-1]
        assert re.search(r"is s3://.*; (Forbidden|The AWS Access Key Id .*) \(on node [\d.]+\)$", line), line
        kept = written()
        assert 0 < kept < SHARDS
        with start() as driver:
            assert driver.said()["new_shards"] == SHARDS - kept
    assert sum(len(scores.read_ids(file)) for file in scores.files_in(OUT)) == SHARDS * PAIRS
