"""Requests of ranks that select as one, and what one process would pick for them."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import torch
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc

from selector_server.sampling import Criterion, Draw, Embedded, Loss, PairScores, Plan, chunk_sizes
from support.wire import error_info, some_embeddings, some_losses

STEPS = itertools.count(1)


def as_ranks(requests, step=None, group="g", **fields):
    step = next(STEPS) if step is None else step
    for rank, request in enumerate(requests):
        request.set(**({"group": group, "rank": rank, "world_size": len(requests), "trainer_step": step} | fields))
    return requests


def balanced(picks, chunks, ranks, seed, gain=100.0, draw=Draw.SAMPLE):
    return Plan(tuple(ranks * size for size in chunk_sizes(picks, chunks)), gain, draw, seed, ranks)


def shares(picks, size, ranks):
    """What each rank gets of picks out of all ranks' candidates: indices and scores, in draw order."""
    for rank in range(ranks):
        mine = picks.indices // size == rank
        yield (picks.indices[mine] - rank * size).tolist(), picks.scores[mine].numpy()


def models_of(ranks, size):
    return [some_embeddings(size, seed=rank) for rank in range(ranks)]


def all_embedded(models, loss=Loss.SIGMOID):
    sides = []
    for side in (0, 1):
        image, text = (torch.from_numpy(np.concatenate([model[side][part] for model in models])) for part in (0, 1))
        sides.append(Embedded.normalise(image, text, *models[0][side][2:]))
    return PairScores(Criterion.LEARNABILITY, *sides, loss)


def assert_refused_alike(answers, code, *texts, reason=None):
    for answer in answers:
        assert isinstance(answer, grpc.RpcError), answer
        assert answer.code() is code, answer
        assert all(text in answer.details() for text in texts), answer.details()
        assert reason is None or error_info(answer)["reason"] == reason


def ask(server, request, timeout=30):
    """The reply, or the error, over a channel of its own."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return rpc.SelectorServiceStub(channel).Select(iter(request.messages()), timeout=timeout)
        except grpc.RpcError as error:
            return error


class Asking:
    """Ranks that ask at once, or in an order, `pause` seconds apart."""

    def __init__(self, server, requests, order=None, pause=0.0, timeout=30):
        self._pool = ThreadPoolExecutor(len(requests))
        self._futures = {}
        for rank in order or range(len(requests)):
            self._futures[rank] = self._pool.submit(ask, server, requests[rank], timeout)
            time.sleep(pause)

    def answers(self):
        return [self._futures[rank].result(60) for rank in sorted(self._futures)]


def together(server, requests, order=None, pause=0.0, **fields):
    """The replies to requests that are made one group's."""
    replies = Asking(server, as_ranks(requests, **fields), order, pause).answers()
    assert all(isinstance(reply, pb.SelectResponse) for reply in replies), replies
    return replies


def some_ranks(count=2, size=20, **fields):
    """Small requests that every server can answer."""
    return as_ranks([some_losses(size) for _ in range(count)], **fields)
