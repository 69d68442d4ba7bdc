"""Ranks that select as one wait for weights together, and are scored by one version."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from selector_proto.v1 import selector_pb2 as pb
from support.model import POLICIES, TwoTower, as_published, samples
from support.wire import raw

from selector_server.sampling import Draw, Plan


def test_ranks_wait_together_and_one_version_scores_them(trainer, run_name):
    version = trainer.serve(21, step=0)
    parts = [samples(20, seed) for seed in (0, 1)]
    ranks = {"group": run_name, "world_size": 2, "trainer_step": 9, "max_lag_steps": 2}

    def ask(rank):
        wait = {"rank": rank, "seed": 5, "when_stale": pb.STALENESS_POLICY_WAIT}
        return trainer.server.select(raw(*parts[rank], **ranks, **wait))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, rank) for rank in (0, 1)]
        trainer.server.wait_pending(2)
        assert trainer.publish(TwoTower(22), step=8) == version + 1
        replies = [one.result(20) for one in asking]
    assert [reply.weights.version for reply in replies] == [version + 1] * 2
    assert [reply.weights.lag_steps for reply in replies] == [1, 1]
    assert all(reply.stages.wait > 0 for reply in replies)
    scores = trainer.models.scores(
        *(np.concatenate(side) for side in zip(*parts, strict=True)), learner=as_published(TwoTower(22))
    )
    picks = POLICIES["joint"].pick(scores, Plan((2,) * 4, 100.0, Draw.SAMPLE, 5, 2)).indices
    assert [list(reply.indices) for reply in replies] == [
        picks[picks < 20].tolist(),
        (picks[picks >= 20] - 20).tolist(),
    ]
