"""A Parquet pool in a store, scored once on Ray; then training with a sidecar that has a learner only picks the same as
with one that has the reference and its cache."""

import io
import json
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from selector_client import InterleavedShards, Reference, SelectingLoader, Selector, WeightPublisher
from selector_tools import cli
from support.model import WORDS, TwoTower, samples
from support.pools import png, text

pytest.importorskip("ray", reason="needs the extra ray")
from selector_tools.bench.ray_nodes import nodes

pytestmark = pytest.mark.timeout(600)
SHARDS, PAIRS, SIZE, PICKS = ("s0", "s1", "s2"), 60, 40, 8
BUCKET = "scored-then-trained"
POOL, SCORES = f"s3://{BUCKET}/pool", f"s3://{BUCKET}/scores"


@pytest.fixture(scope="module")
def scored(store, bundles):
    """The reference that scored the pool, on two nodes."""
    store.create_bucket(Bucket=BUCKET)
    for number, name in enumerate(SHARDS):
        pixels, tokens = samples(PAIRS, number)
        keys = [f"{row:04}" for row in range(PAIRS)]
        table = pa.table({"key": keys, "jpg": [png(one) for one in pixels], "caption": [text(one) for one in tokens]})
        pq.write_table(table, file := io.BytesIO())
        store.put_object(Bucket=BUCKET, Key=f"pool/{name}.parquet", Body=file.getvalue())
    with nodes(cpus=1) as cluster:
        cluster.add(cpus=1)
        flags = ["--reference", str(bundles.reference_path), "--pool", POOL, "--out", SCORES, "--ray", cluster.address]
        command = [sys.executable, "-m", "selector_tools.cli", "reference", "score", "--json", *flags, "--workers", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] == len(SHARDS) * PAIRS
    with fsspec.open(f"{SCORES}/s0.parquet") as file:
        return Reference.of(pq.read_schema(file).metadata)


def pairs(shard):
    """The samples of a shard, each with its id and with what the reference made of it."""
    with fsspec.open(f"{SCORES}/{shard}.parquet") as file:
        known = pq.read_table(file, columns=["id", "image", "text"])
    with fsspec.open(f"{POOL}/{shard}.parquet") as file:
        rows = pq.read_table(file)
    ids = [f"{shard}/{key}" for key in rows["key"].to_pylist()]
    order = pc.index_in(pa.array(ids), known["id"])
    sides = (known[side].take(order).to_pylist() for side in ("image", "text"))
    for sample, name, image, words in zip(rows.to_pylist(), ids, *sides, strict=True):
        yield sample | {"ids": name, "reference_image": image, "reference_text": words}


def trained(server, redis_url, run, reference):
    """Trains for an epoch; returns what was picked in each step, what the prefilter knew, and the learner's end."""
    learner, picked, known = TwoTower(3), [], set()
    optimizer = torch.optim.SGD(learner.parameters(), 0.05)
    with (
        WeightPublisher(redis_url, run, every=1) as publisher,
        Selector(
            server.address, run=run, sub_batch_size=PICKS, seed=5, on_error="raise", max_lag_steps=1, when_stale="wait"
        ) as selector,
    ):
        super_batches = InterleavedShards(SHARDS, pairs, SIZE, at_once=2, buffer=30, seed=1)
        loader = SelectingLoader(super_batches, selector, prefetch=0, reference=reference)
        for step, batch in enumerate(loader):
            picked.append([sample["ids"] for sample in batch])
            known.add((loader.last.prefiltered.known, loader.last.prefiltered.left_out))
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(sample["jpg"]))) for sample in batch])
            tokens = torch.tensor([[WORDS.index(word) for word in sample["caption"].split()] for sample in batch])
            image = torch.nn.functional.normalize(
                learner.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
            )
            words = torch.nn.functional.normalize(learner.encode_text(tokens))
            loss = -torch.nn.functional.logsigmoid(10 * (image @ words.T) * (2 * torch.eye(PICKS) - 1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            publisher.publish(step, learner)
    return picked, known, [parameter.detach().numpy() for parameter in learner.parameters()]


def test_a_learner_alone_picks_what_a_reference_with_a_cache_picks(
    scored, sidecar, bundles, redis_url, run_name, tmp_path
):
    fill = ["--reference", bundles.reference_path, "--pool", POOL, "--cache", tmp_path / "cache"]
    assert cli.main(["cache", "fill", *map(str, fill)]) == 0
    runs = [f"{run_name}-{kind}" for kind in ("cached", "kept")]
    cached = sidecar(bundles.flags | {"cache": tmp_path / "cache", "redis": redis_url, "run": runs[0]})
    alone = sidecar({"learner": bundles.flags["learner"], "redis": redis_url, "run": runs[1]})
    assert not alone.info().HasField("reference")
    of_cache, of_data = (
        trained(server, redis_url, run, reference)
        for server, run, reference in zip((cached, alone), runs, (None, scored), strict=True)
    )
    assert len(of_cache[0]) == len(SHARDS) * PAIRS // SIZE
    assert of_cache[1] == of_data[1] == {(SIZE, SIZE - 20)}
    assert of_data[0] == of_cache[0]
    for mine, other in zip(of_data[2], of_cache[2], strict=True):
        np.testing.assert_array_equal(mine, other)
