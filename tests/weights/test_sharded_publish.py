"""A model sharded over processes is published whole, by rank 0 alone."""

import multiprocessing
import os

import numpy as np
from selector_client import WeightPublisher
from support.processes import free_port

from selector_server.weights.fetcher import Fetcher

ROWS, COLUMNS = 64, 48


def _rank(rank, world, port, url, run, answers):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS), torch.nn.Linear(ROWS, 8))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    fully_shard(model, mesh=mesh)
    assert type(model.state_dict()["0.weight"]).__name__ == "DTensor"
    with WeightPublisher(url, run, dtype="fp32") as publisher:
        published = publisher.publish(5, model)
        flushed = publisher.flush()
        dist.barrier()
    answers.put((rank, published, flushed, publisher.published, {name: value.numpy() for name, value in whole.items()}))
    dist.destroy_process_group()


def test_fully_sharded_over_two_ranks(redis_url, run_name):
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    answers = spawn.Queue()
    ranks = [spawn.Process(target=_rank, args=(rank, 2, port, redis_url, run_name, answers)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    first, second = sorted((answers.get(timeout=90) for _ in ranks), key=lambda answer: answer[0])
    for rank in ranks:
        rank.join(30)
    assert first[1:4] == (True, True, 1)
    assert second[1:4] == (False, True, 0)
    fetcher = Fetcher(redis_url, run_name, 1 << 30)
    fetched = fetcher.fetch(1, fetcher.manifest(1))
    fetcher.close()
    assert fetched.tensors.keys() == first[4].keys()
    for name, value in first[4].items():
        found = np.frombuffer(fetched.tensors[name].data, np.float32).reshape(value.shape)
        np.testing.assert_array_equal(found, value)
