"""Ranks that select as one, and all the ways to fail alike: all are refused, or none."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import samples
from support.plugins import FIRST, with_policies
from support.processes import SlowClient, eventually
from support.ranks import Asking, as_ranks, ask, assert_refused_alike, some_ranks, together
from support.wire import embeddings, error_info, losses, raw, some_embeddings, some_losses

REFUSED, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
AT_ONCE = 20  # seconds: less than the 30 after which a client that is not answered gives up


def test_a_missing_rank_refuses_all_in_time_and_a_late_one_at_once(quick):
    requests, started = some_ranks(4, step=2000), time.monotonic()
    answers = Asking(quick, [requests[0], requests[1], requests[3]]).answers()
    assert 1.4 < time.monotonic() - started < 15
    assert_refused_alike(answers, REFUSED, "step 2000 of its 4 ranks", "rank 2 did not come within 1.5 s")
    assert {error_info(answer)["reason"] for answer in answers} == {"GROUP_FAILED"}
    late = ask(quick, requests[2])
    assert late.details() == answers[0].details(), "it waits for nobody: rank 0 would be missing then"
    eventually(lambda: not any(isinstance(answer, grpc.RpcError) for answer in Asking(quick, some_ranks(4)).answers()))


def test_the_earliest_deadline_ends_the_wait_of_all(patient):
    requests, started = some_ranks(3), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        calm, hasty = pool.submit(ask, patient, requests[0], 50), pool.submit(ask, patient, requests[1], 4)
        answers = [calm.result(60), hasty.result(60)]
    assert time.monotonic() - started < 25, "the other deadline is 50 s away"
    assert_refused_alike(answers, REFUSED, "rank 2 did not come in time", reason="GROUP_FAILED")


def two_embedded(**fields):
    return embeddings(*some_embeddings(20), **fields)


def scaled(scale):
    learner, reference = some_embeddings(20)
    return embeddings((*learner[:2], scale, -10.0), reference)


@pytest.mark.parametrize(
    ("first", "second", "field", "values"),
    [
        (lambda: some_losses(20), two_embedded, "candidates", ("losses", "embeddings")),
        (lambda: some_losses(20), lambda: some_losses(21), "number of candidates", ("20", "21")),
        (two_embedded, lambda: two_embedded(policy="independent"), "policy", ("joint", "independent")),
        (
            lambda: two_embedded(criterion=pb.CRITERION_HARD_LEARNER),
            two_embedded,
            "criterion",
            ("HARD_LEARNER", "LEARNABILITY"),
        ),
        (two_embedded, lambda: two_embedded(loss=pb.LOSS_SOFTMAX), "loss", ("sigmoid", "softmax")),
        (two_embedded, lambda: two_embedded(sub_batch_size=5), "sub_batch_size", ("4", "5")),
        (two_embedded, lambda: two_embedded(chunks=2), "chunks", ("4", "2")),
        (two_embedded, lambda: two_embedded(gain=3.5), "gain", ("100.0", "3.5")),
        (two_embedded, lambda: two_embedded(draw=pb.DRAW_TOP_K), "draw", ("sample", "top-k")),
        (two_embedded, lambda: two_embedded(max_lag_steps=5), "max_lag_steps", ("None", "5")),
        (two_embedded, lambda: two_embedded(max_age_seconds=5), "max_age_seconds", ("None", "5.0")),
        (two_embedded, lambda: two_embedded(when_stale=pb.STALENESS_POLICY_WAIT), "when_stale", ("serve", "wait")),
        (lambda: scaled(10.0), lambda: scaled(11.0), "embeddings.learner.logit_scale", ("10.0", "11.0")),
        (
            two_embedded,
            lambda: embeddings(*some_embeddings(20, width=9)),
            "embeddings.learner.image",
            ("float32 [B, 8]", "float32 [B, 9]"),
        ),
        (
            lambda: losses(*np.ones((2, 20), np.float32)),
            lambda: losses(*np.ones((2, 20), np.float16)),
            "losses.learner",
            ("float32 [B]", "float16 [B]"),
        ),
    ],
)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_that_disagree_are_refused_alike(patient, first, second, field, values, order):
    requests = as_ranks([first(), second()])
    for request in requests:
        request.set(world_size=3)
    started = time.monotonic()
    answers = Asking(patient, requests, order, pause=0.3).answers()
    assert time.monotonic() - started < AT_ONCE, "though rank 2 never comes"
    wanted = f"{field} is " + " and ".join(f"{values[rank]} on rank {rank}" for rank in order)
    assert_refused_alike(answers, INVALID, wanted, "the same for all ranks", reason="INVALID_REQUEST")


def test_ranks_that_disagree_about_their_number_are_refused_alike(patient):
    requests = some_ranks(2)
    requests[1].set(world_size=3)
    answers = Asking(patient, requests, pause=0.3).answers()
    assert_refused_alike(answers, INVALID, "world_size is 2 on rank 0 and 3 on rank 1")


def test_names_of_samples_on_one_rank_only(server):
    requests = as_ranks([raw(*samples(20, rank)) for rank in (0, 1)])
    requests[0].selection.sample_ids.integers.CopyFrom(requests[0].add(np.arange(20)))
    answers = Asking(server, requests, pause=0.3).answers()
    assert_refused_alike(answers, INVALID, "sample_ids is set on rank 0 and unset on rank 1")


def test_a_rank_that_is_refused_refuses_the_others_at_once(patient):
    requests, started = some_ranks(3), time.monotonic()
    requests[1].set(gain=-1)
    first, bad = Asking(patient, requests[:2], pause=0.3).answers()
    assert time.monotonic() - started < AT_ONCE
    assert_refused_alike([bad], INVALID, "gain is -1.0")
    assert_refused_alike([first], REFUSED, "rank 1 was refused: gain is -1.0", reason="GROUP_FAILED")
    assert_refused_alike([ask(patient, requests[2])], REFUSED, "rank 1 was refused: gain is -1.0")


def test_a_rank_that_goes_away_refuses_the_others_at_once(patient):
    requests = some_ranks(3)
    leaving = patient.stub.Select.future(iter(requests[1].messages()), timeout=30)
    with ThreadPoolExecutor(1) as pool:
        waiting, started = pool.submit(ask, patient, requests[0]), time.monotonic()
        eventually(lambda: patient.pending() == 2)
        time.sleep(0.2)
        leaving.cancel()
        assert_refused_alike([waiting.result(20)], REFUSED, "rank 1 went away", reason="GROUP_FAILED")
    assert time.monotonic() - started < AT_ONCE


def test_a_rank_that_goes_away_while_it_sends(patient):
    requests = some_ranks(2)
    sending = SlowClient(patient, requests[1])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, patient, requests[0])
        eventually(lambda: patient.pending() == 2)
        sending.leave()
        # What the server sees first: that the client is gone, or that its stream is short.
        assert_refused_alike([waiting.result(20)], REFUSED, "ranks failed: rank 1 ", reason="GROUP_FAILED")


def test_a_newer_request_of_a_rank_takes_the_place_of_the_older_one(patient):
    requests = some_ranks(2)
    newer = as_ranks([some_losses(20), some_losses(20, seed=77)], step=requests[0].selection.trainer_step)
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(ask, patient, requests[0])
        time.sleep(0.3)
        again = pool.submit(ask, patient, newer[0])
        assert_refused_alike([older.result(20)], REFUSED, "a newer request of rank 0 took this one's place")
        replies = [ask(patient, requests[1]), again.result(20)]
    assert [reply.seed for reply in replies] == [1, 1]
    assert len(replies[0].indices) == len(replies[1].indices) == 4


def test_a_request_that_was_replaced_while_it_was_sent(patient):
    requests = some_ranks(2)
    sending = SlowClient(patient, requests[0])
    eventually(lambda: patient.pending() == 1)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(ask, patient, some_ranks(2, step=requests[0].selection.trainer_step)[0])
        eventually(lambda: patient.pending() == 2)
        with pytest.raises(grpc.RpcError, match="took this one's place"):
            sending.finish()
        assert isinstance(ask(patient, requests[1]), pb.SelectResponse)
        assert isinstance(again.result(20), pb.SelectResponse)


# Limits, drains, policies of others


def test_more_ranks_than_the_server_admits_are_refused_by_their_header(sidecar):
    server = sidecar({"max_pending_requests": 2, "group_seconds": 8})
    assert server.info().limits.max_world_size == 2
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_refused_alike([ask(server, some_ranks(3)[0])], exhausted, "world_size is 3", "max_pending_requests", "2")
    together(server, some_ranks(2))
    # Two groups that shut each other out fail at once; none waits for ever.
    first, other = some_ranks(2, group="a"), some_ranks(2, group="b")
    started = time.monotonic()
    answers = Asking(server, [first[0], other[0], first[1]], pause=0.3).answers()
    assert_refused_alike(answers[2:], exhausted, "pending requests")
    assert_refused_alike(answers[:1], REFUSED, "rank 1 was refused: pending requests is 2")
    assert time.monotonic() - started < AT_ONCE


def test_a_super_batch_of_all_ranks_must_fit(patient):
    answers = Asking(patient, some_ranks(3, size=134)).answers()
    codes = {answer.code() for answer in answers}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, REFUSED}
    assert all("3 x 134; at most 400 together" in answer.details() for answer in answers)
    together(patient, some_ranks(2, size=200))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"group": ""}, "group is ''; 1 to 128 printable"),
        ({"group": "g" * 129}, "1 to 128 printable"),
        ({"group": "a\nb"}, "printable"),
        ({"rank": 2}, "rank is 2; must be below world_size, 2"),
    ],
)
def test_what_a_rank_must_say(patient, fields, text):
    [request, _] = some_ranks(2, **fields)
    assert_refused_alike([ask(patient, request)], INVALID, text)


def test_ranks_must_say_their_step(patient):
    assert_refused_alike([ask(patient, some_losses(group="g", world_size=2))], INVALID, "trainer_step is missing")


def test_a_drain_ends_the_wait(sidecar):
    server = sidecar({"group_seconds": 60})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, some_ranks(2)[0])
        eventually(lambda: server.pending() == 1)
        server.signal(signal.SIGTERM)
        assert_refused_alike([waiting.result(10)], grpc.StatusCode.UNAVAILABLE, "server is draining")
    server.hang_up()
    assert server.process.wait(15) == 0


def test_a_foreign_policy_without_quotas_is_refused_by_name(sidecar, tmp_path):
    server = sidecar(env=with_policies(tmp_path, FIRST, first="First"))
    answers = Asking(server, as_ranks([some_losses(20, policy="first") for _ in range(2)])).answers()
    assert_refused_alike(answers, REFUSED, "policy is 'first'; does not take equally many", reason="NOT_POSSIBLE")


def test_whatever_befalls_a_rank_the_others_agree(quick):
    """Ranks are late, cancelled at any moment, wrong, or asked twice: the others all get picks, or none does."""
    rng, kinds = np.random.default_rng(1), set()
    for step in range(5000, 5060):
        requests = as_ranks([two_embedded(seed=step) for _ in range(3)], step)
        event, victim, moment = rng.choice(["cancel", "wrong", "twice", "late"]), rng.integers(3), rng.uniform(0, 0.03)
        if event == "wrong":
            requests[victim].set(gain=-1)
        others = [rank for rank in range(3) if rank != victim]
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, quick, requests[rank]) for rank in others]
            if event == "late":
                time.sleep(moment)
            first = quick.stub.Select.future(iter(requests[victim].messages()), timeout=20)
            if event == "twice":
                time.sleep(moment)
                pool.submit(ask, quick, requests[victim])
            if event == "cancel":
                time.sleep(moment)
                first.cancel()
            outcomes = {type(one.result(20)) is pb.SelectResponse for one in asking}
        assert len(outcomes) == 1, (step, event, moment)
        kinds |= {(str(event), *outcomes)}
    assert {("wrong", False), ("late", True)} <= kinds
