"""Sidecars that select as one, each for its own trainer, against one process; and what is left when one is lost."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from selector_proto.v1 import admin_pb2, admin_pb2_grpc, inspection_pb2, inspection_pb2_grpc
from selector_proto.v1 import selector_pb2 as pb
from selector_proto.v1 import selector_pb2_grpc as rpc
from support.model import POLICIES, samples
from support.processes import eventually, free_port, run_serve
from support.ranks import STEPS, all_embedded, as_ranks, assert_refused_alike, balanced, models_of, shares
from support.trainers import Trainer
from support.wire import embeddings, error_info, raw, some_losses

REFUSED, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
SECONDS = 2.0


class Circle:
    """Sidecars that are each other's peers, and a channel to each. They wait for each other `seconds`."""

    def __init__(self, start, count, flags=None, seconds=SECONDS):
        self._start, self._flags = start, (flags or {}) | {"peer_seconds": seconds}
        self.peers = f"tcp://127.0.0.1:{free_port()}"
        self.count, self.sidecars = count, [None] * count
        for rank in range(count):
            self.start(rank)
        for one in self.sidecars:
            one.wait_healthy()
        self.connected()

    def start(self, rank):
        flags = {"peers": self.peers, "peer_rank": rank, "peer_count": self.count}
        env = {"GLOO_SOCKET_IFNAME": "lo"}
        self.sidecars[rank] = self._start(flags | {"threads": 1} | self._flags, env=env, wait=False)

    def connected(self):
        """Waits until a step is drawn by all of them."""
        eventually(lambda: not any(map(is_error, self.ask(step(self.count)))), 40, lambda: self.sidecars[0].text)

    def ask(self, requests, timeout=30):
        """Answers, or errors, in the order of ranks; None instead of a request is not asked."""
        with ThreadPoolExecutor(self.count) as pool:
            asked = [pool.submit(ask, *pair, timeout) for pair in zip(self.sidecars, requests, strict=True)]
            return [one.result(60) for one in asked]


def ask(server, request, timeout):
    if request is None:
        return None
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return rpc.SelectorServiceStub(channel).Select(iter(request.messages()), timeout=timeout)
        except grpc.RpcError as error:
            return error


def is_error(answer):
    return isinstance(answer, grpc.RpcError)


def step(count, size=20, **fields):
    return as_ranks([embeddings(*m, seed=3, **fields) for m in models_of(count, size)])


@pytest.fixture(scope="module")
def pair(start_sidecars, bundles):
    """Two sidecars with models that wait for each other longer than clients do."""
    with start_sidecars() as start:
        yield Circle(start, 2, bundles.flags | {"inspect": "true"}, seconds=60)


@pytest.fixture(scope="module")
def hasty(start_sidecars):
    """Two sidecars without models that wait for each other a short time."""
    with start_sidecars() as start:
        yield Circle(start, 2)


def assert_shares(replies, scores, plan, size):
    picks = POLICIES["joint"].pick(scores, plan)
    for reply, (indices, values) in zip(replies, shares(picks, size, plan.ranks), strict=True):
        assert isinstance(reply, pb.SelectResponse), reply
        assert list(reply.indices) == indices
        np.testing.assert_allclose(reply.scores, values, rtol=1e-4, atol=1e-4)
        assert reply.seed == plan.seed
        assert reply.objective == pytest.approx(picks.total / plan.picks, rel=1e-4)
        assert not reply.HasField("objective_uniform")


def picked_of(seen) -> list[int]:
    return [index for index, fate in enumerate(seen.fates) if fate == inspection_pb2.FATE_PICKED]


def test_each_sidecar_sees_what_was_picked_of_its_own_ranks_candidates(pair):
    answers, last = pair.ask(step(2, 30, max_similarity=0.2)), inspection_pb2.GetSuperBatchRequest()
    for one, reply in zip(pair.sidecars, answers, strict=True):
        stub = inspection_pb2_grpc.InspectionServiceStub(one.channel)
        picks = sorted(reply.indices)
        # It is kept a moment after the reply.
        eventually(lambda stub=stub, picks=picks: picked_of(stub.GetSuperBatch(last, timeout=10)) == picks)
        seen = stub.GetSuperBatch(last, timeout=10)
        assert (len(seen.scores), seen.point.kept_apart > 0) == (30, True)
        assert np.isfinite(seen.learner_losses).all()


def test_embeddings_are_picked_as_by_one_sidecar_for_all_ranks(pair, plain_server):
    models = models_of(2, 40)
    requests = as_ranks([embeddings(*m, seed=7 + r, chunks=3, gain=5.0) for r, m in enumerate(models)])
    replies = pair.ask(requests)
    assert_shares(replies, all_embedded(models), balanced(8, 3, 2, 7, 5.0), 40)
    with ThreadPoolExecutor(2) as pool:
        group = list(pool.map(plain_server.select, requests))
    assert [list(one.indices) for one in group] == [list(one.indices) for one in replies]


def test_samples_are_encoded_by_their_own_sidecar(pair, bundles):
    parts = [samples(30, seed) for seed in range(2)]
    replies = pair.ask(as_ranks([raw(*part, seed=5 + r, gain=3.0) for r, part in enumerate(parts)]))
    pixels, ids = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    assert_shares(replies, bundles.scores(pixels, ids), balanced(6, 6, 2, 5, 3.0), 30)
    assert {reply.weights.version for reply in replies} == {0}


def test_each_sidecar_tells_how_alike_its_own_candidates_are(pair, plain_server):
    models = models_of(2, 40)
    replies = pair.ask(as_ranks([embeddings(*m, seed=7, sub_batch_size=40) for m in models]))
    alone = [plain_server.select(embeddings(*m, seed=7, sub_batch_size=40)) for m in models]
    assert [reply.locality for reply in replies] == [reply.locality for reply in alone]
    assert replies[0].locality.adjacent != replies[1].locality.adjacent


def test_candidates_that_cannot_be_used_are_left_out_by_each_sidecar(pair):
    models = models_of(2, 40)
    models[0][0][0][[3, 4]] = np.nan
    models[1][1][1][39] = np.inf
    fields = {"chunks": 3, "gain": 5.0, "bad_samples": pb.BAD_SAMPLES_EXCLUDE}
    replies = pair.ask(as_ranks([embeddings(*m, seed=7, **fields) for m in models]))
    open_ = torch.ones(80, dtype=torch.bool)
    open_[[3, 4, 79]] = False
    assert_shares(replies, all_embedded(models_of(2, 40)).with_open(open_), balanced(8, 3, 2, 7, 5.0), 40)
    assert [list(reply.exclusions[0].indices) for reply in replies] == [[3, 4], [39]]
    models[1][1][1][4:] = np.nan
    fields["max_excluded_share"] = 1.0
    answers = pair.ask(as_ranks([embeddings(*m, seed=7, **fields) for m in models]))
    assert_refused_alike(answers, REFUSED, "candidates left is 4 of 40; 8 must be picked")
    assert not any(map(is_error, pair.ask(step(2))))


def test_four_sidecars(start_sidecars):
    with start_sidecars() as start:
        circle, models = Circle(start, 4, seconds=60), models_of(4, 20)
        replies = circle.ask(as_ranks([embeddings(*m, seed=r) for r, m in enumerate(models)]))
    assert_shares(replies, all_embedded(models), balanced(4, 4, 4, 0), 20)


def test_many_steps_under_way_in_different_orders_and_the_same_step_again(pair):
    models, numbers = models_of(2, 20), [next(STEPS) for _ in range(6)]
    for _ in range(2):
        with ThreadPoolExecutor(12) as pool:
            asked = {}
            for rank, order in enumerate((numbers, numbers[::-1])):
                for number in order:
                    request = as_ranks([embeddings(*m, seed=number) for m in models], number)[rank]
                    asked[number, rank] = pool.submit(ask, pair.sidecars[rank], request, 30)
        for number in numbers:
            replies = [asked[number, rank].result() for rank in (0, 1)]
            assert_shares(replies, all_embedded(models), balanced(4, 4, 2, number), 20)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_rank_refuses_all_in_time_and_a_late_one_at_once(hasty, missing):
    requests, started = step(2), time.monotonic()
    there = 1 - missing
    answer = hasty.ask([requests[0] if there == 0 else None, requests[1] if there == 1 else None])[there]
    assert SECONDS - 0.1 < time.monotonic() - started < SECONDS + 10
    assert_refused_alike([answer], REFUSED, f"rank {missing} did not come within 2 s", reason="GROUP_FAILED")
    late = ask(hasty.sidecars[missing], requests[missing], 30)
    assert late.details() == answer.details(), "it waits for nobody: the other would be missing then"
    hasty.connected()


def test_a_deadline_ends_the_wait(pair):
    answer = pair.ask([step(2)[0], None], timeout=4)[0]
    assert_refused_alike([answer], REFUSED, "rank 1 did not come in time", reason="GROUP_FAILED")


def test_ranks_that_disagree_are_told_so_alike(pair):
    requests = step(2)
    requests[1].set(gain=3.5)
    answers = pair.ask(requests)
    assert_refused_alike(answers, INVALID, "gain is 100.0 on rank 0 and 3.5 on rank 1")
    assert not any(map(is_error, pair.ask(step(2))))


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"rank": 1}, INVALID, "rank is 1; must be peer_rank of this sidecar, 0"),
        ({"world_size": 3}, INVALID, "world_size is 3; must be peer_count of this sidecar, 2"),
        ({"policy": "independent"}, REFUSED, "policy is 'independent'; sidecars select as one by 'joint' only"),
    ],
)
def test_what_is_refused_by_one_sidecar(pair, fields, code, text):
    error = ask(pair.sidecars[0], step(2)[0].set(**fields), 30)
    assert error.code() is code
    assert text in error.details()


def test_a_refused_rank_refuses_the_others_at_once(pair):
    requests = step(2)
    requests[1].set(policy="independent")
    answers = pair.ask(requests)
    assert_refused_alike(answers, REFUSED, "'independent'")
    assert error_info(answers[0])["reason"] == "GROUP_FAILED"


@pytest.mark.parametrize("lost", [1, 0])
def test_a_lost_sidecar_comes_back_without_a_restart_of_the_others(start_sidecars, lost):
    with start_sidecars() as start:
        circle = Circle(start, 2)
        other = circle.sidecars[1 - lost]
        circle.sidecars[lost].stop()
        requests = step(2)
        requests[lost] = None
        started = time.monotonic()
        answer = circle.ask(requests)[1 - lost]
        assert time.monotonic() - started < SECONDS + 10
        assert_refused_alike([answer], REFUSED, reason="GROUP_FAILED")
        assert other.health() == "SERVING"
        assert len(other.select(some_losses(20)).indices) == 4, "requests without a group are served"
        circle.start(lost)
        circle.sidecars[lost].wait_healthy()
        circle.connected()
        assert other.process.poll() is None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sidecar_lost_while_they_draw(start_sidecars, how):
    with start_sidecars() as start, ThreadPoolExecutor(1) as pool:
        circle = Circle(start, 2, {"max_chunks": 2000})
        asked = pool.submit(circle.ask, step(2, 4000, filter_ratio=0.5, chunks=1500))
        time.sleep(1)
        assert not asked.done()
        circle.sidecars[1].signal(how)
        started = time.monotonic()
        if how is signal.SIGSTOP:
            time.sleep(SECONDS + 1)
            circle.sidecars[1].signal(signal.SIGCONT)
        answer = asked.result(60)[0]
        assert time.monotonic() - started < 2 * SECONDS + 10
        assert_refused_alike([answer], REFUSED, "a sidecar was lost", reason="GROUP_FAILED")
        assert circle.sidecars[0].health() == "SERVING"
        if how is signal.SIGKILL:
            circle.start(1)
            circle.sidecars[1].wait_healthy()
        circle.connected()


def test_a_sidecar_that_ends_says_so(start_sidecars):
    with start_sidecars() as start:
        circle = Circle(start, 2)
        circle.sidecars[1].hang_up()
        circle.sidecars[1].signal(signal.SIGTERM)
        assert circle.sidecars[1].process.wait(15) == 0
        requests, said = [step(2)[0], None], []

        def told() -> bool:
            said.append(circle.ask(requests)[0].details())
            return "not all 2 sidecars are connected" in said[-1]

        eventually(told)
        assert not any("did not come" in one for one in said), "nobody waits for one that has said goodbye"


def test_ranks_scored_by_different_weights_are_refused(start_sidecars, bundles, redis_url, run_name):
    with start_sidecars() as start:
        circle = Circle(start, 2, bundles.flags | {"redis": redis_url, "run": run_name}, seconds=60)
        Trainer(circle.sidecars[1], bundles, redis_url, run_name).serve(seed=5)
        parts = [samples(20, seed) for seed in range(2)]
        eventually(lambda: circle.sidecars[0].status().serving.version == 1)
        replies = circle.ask(as_ranks([raw(*part) for part in parts]))
        assert [reply.weights.version for reply in replies] == [1, 1]
        admin_pb2_grpc.AdminServiceStub(circle.sidecars[0].channel).PinWeights(admin_pb2.PinWeightsRequest(version=0))
        answers = circle.ask(as_ranks([raw(*part) for part in parts]))
        text = "weights version is 0 on rank 0 and 1 on rank 1"
        assert_refused_alike(answers, REFUSED, text, reason="GROUP_FAILED")


def test_a_sidecar_that_stops_answering_is_left_behind(start_sidecars):
    with start_sidecars() as start:
        circle = Circle(start, 2)
        circle.sidecars[1].signal(signal.SIGSTOP)
        answer = circle.ask([step(2)[0], None])[0]
        assert_refused_alike([answer], REFUSED, "rank 1 did not come", reason="GROUP_FAILED")
        circle.sidecars[1].signal(signal.SIGCONT)
        circle.connected()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"peers": "host:1", "peer_count": 2}, "peers is 'host:1'; must be tcp://host:port"),
        ({"peers": "tcp://h:1"}, "peer_count is 1; must be 2 or more with peers"),
        ({"peers": "tcp://h:1", "peer_count": 2, "peer_rank": 2}, "peer_rank is 2; must be below peer_count, 2"),
    ],
)
def test_wrong_settings(flags, text):
    code, said = run_serve(flags)
    assert code == 2
    assert text in said


def test_a_rendezvous_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        peers = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        flags = {"peers": peers, "peer_count": 2, "metrics_listen": "", "listen": "127.0.0.1:0"}
        code, said = run_serve(flags)
    assert code == 2
    assert f"peers is {peers}; sidecar 0 cannot serve it" in said
