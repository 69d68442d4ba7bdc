"""Requests of ranks that select as one, and what one process would pick for them."""

import itertools

import grpc
import numpy as np
import torch

from selector_server.sampling import Criterion, Draw, Embedded, Loss, PairScores, Plan, chunk_sizes
from support.wire import error_info, some_embeddings

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
