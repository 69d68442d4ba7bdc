"""Shortlists: which candidates would compete, told by their ids and the reference cache alone."""

import grpc
import numpy as np
import pytest
from selector_proto.v1 import selector_pb2 as pb
from support.model import embed, samples
from support.processes import eventually
from support.refusals import EXHAUSTED, INVALID, PRECONDITION
from support.wire import Request, error_info, raw, some_embeddings

COUNT, KNOWN, PICKS = 40, 30, 4
PIXELS, TOKENS = samples(COUNT)


def named(ids=range(COUNT), **fields) -> Request:
    request = Request()
    ids = list(ids)
    if isinstance(ids[0], str):
        request.selection.sample_ids.strings.CopyFrom(request.pack([one.encode() for one in ids]))
    else:
        request.selection.sample_ids.integers.CopyFrom(request.add(np.array(ids, np.int64)))
    return request.set(**({"sub_batch_size": PICKS, "prefilter": 2.0} | fields))


def with_ids(rows, first=0, **fields) -> Request:
    rows = np.asarray(rows)
    request = raw(PIXELS[rows], TOKENS[rows], **({"sub_batch_size": PICKS, "seed": 3} | fields))
    request.selection.sample_ids.integers.CopyFrom(request.add(rows.astype(np.int64) + first))
    return request


def ask(server, request, timeout=30):
    return server.stub.Shortlist(iter(request.messages()), timeout=timeout)


def refused(server, request, timeout=30) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, request, timeout)
    return caught.value


@pytest.fixture(scope="module")
def warm(start_sidecars, bundles, tmp_path_factory):
    """A sidecar whose cache knows the first 30 samples."""
    folder = tmp_path_factory.mktemp("cache")
    with start_sidecars() as start:
        server = start(bundles.flags | {"cache": folder, "max_super_batch": 200, "access_log": True})
        first = with_ids(range(KNOWN), criterion=pb.CRITERION_EASY_REFERENCE)
        eventually(lambda: server.select(first).cached_references == KNOWN)
        yield server


@pytest.fixture(scope="module")
def best(bundles):
    """The known samples, those of lowest reference loss first: of one pair the loss falls with the cosine."""
    found = embed(bundles.reference, PIXELS[:KNOWN], TOKENS[:KNOWN])
    cosines = (found.image.double() * found.text.double()).sum(dim=1).numpy()
    return np.argsort(-cosines)


def test_the_known_ones_of_lowest_loss_and_all_unknown_ones_go_on(warm, best):
    reply = ask(warm, named(request_id="an-id"))
    assert list(reply.indices) == [*sorted(best[: 2 * PICKS].tolist()), *range(KNOWN, COUNT)]
    counts = reply.prefiltered
    assert (counts.known, counts.unknown, counts.left_out) == (KNOWN, COUNT - KNOWN, KNOWN - 2 * PICKS)
    assert reply.request_id == "an-id"
    assert not reply.exclusions
    share = ask(warm, named(filter_ratio=0.9, prefilter=2.5))
    assert len(share.indices) == 10 + 10, "b = 4 follows from the ratio and all candidates"
    assert list(ask(warm, named(prefilter=1e6)).indices) == list(range(COUNT))


def test_a_select_of_the_shortlist_by_positions_picks_what_one_call_does(warm):
    """By ids of its own: selecting fills the cache."""
    everything = with_ids(range(COUNT), 1000, criterion=pb.CRITERION_EASY_REFERENCE)
    eventually(lambda: warm.select(everything).cached_references == COUNT)
    for policy in ("joint", "independent"):
        for explore in ({}, {"explore": 0.5}):
            settings = {"policy": policy, "prefilter": 2.0, "gain": 0.1, **explore}
            one = warm.select(with_ids(range(COUNT), 1000, **settings))
            rows = np.array(ask(warm, named(range(1000, 1000 + COUNT), **settings)).indices, np.int64)
            assert len(rows) == 2 * PICKS
            renumbered = warm.select(with_ids(rows, 1000, **settings))
            request = with_ids(rows, 1000, **settings)
            request.selection.positions.CopyFrom(request.add(rows))
            two = warm.select(request)
            assert rows[list(two.indices)].tolist() == list(one.indices)
            np.testing.assert_allclose(two.scores, one.scores, rtol=1e-4, atol=1e-5)
            assert two.objective == pytest.approx(one.objective, abs=1e-5)
            assert rows[list(renumbered.indices)].tolist() != list(one.indices), "the noise goes by positions"


def test_which_device_and_weights_score_does_not_matter_and_nothing_is_encoded(warm):
    before = warm.metrics()
    ask(warm, named())
    after = warm.metrics()

    def grew(name, **labels):
        return after(name, **labels) - (before(name, **labels) or 0)

    assert grew("selector_requests_total", method="Shortlist", code="OK") == 1
    assert grew("selector_candidates_total") == grew("selector_not_examined_total") == KNOWN - 2 * PICKS
    assert grew("selector_picks_total") == 0
    assert after("selector_pending_requests") == 0
    eventually(lambda: "Shortlist OK in" in warm.text and ", 18 of 40 go on" in warm.text)


def test_ids_that_are_there_twice_and_what_the_client_excludes_are_out_before_the_prefilter(warm, best):
    ids = [*range(COUNT - 1), int(best[0])]
    exclusion = pb.Exclusion(reason=pb.EXCLUSION_REASON_MISSING, indices=[int(best[1])], first="no id")
    reply = ask(warm, named(ids, bad_samples=pb.BAD_SAMPLES_EXCLUDE, exclusions=[exclusion]))
    going = [best[0], *best[2 : 2 * PICKS + 1]]
    assert list(reply.indices) == [*sorted(int(row) for row in going), *range(KNOWN, COUNT - 1)]
    assert [(one.reason, list(one.indices)) for one in reply.exclusions] == [
        (pb.EXCLUSION_REASON_MISSING, [best[1]]),
        (pb.EXCLUSION_REASON_REPEATED, [COUNT - 1]),
    ]
    assert reply.prefiltered.known == KNOWN - 1
    assert error_info(refused(warm, named(ids)))["field"] == f"sample_ids[{COUNT - 1}]"


def test_the_uniform_policy_takes_no_notice_of_the_prefilter(warm):
    reply = ask(warm, named(policy="uniform"))
    assert list(reply.indices) == list(range(COUNT))
    assert not reply.HasField("prefiltered")


def test_names_and_numbers_never_meet(warm):
    reply = ask(warm, named([str(n) for n in range(COUNT)]))
    assert len(reply.indices) == reply.prefiltered.unknown == COUNT


def candidates(kind) -> Request:
    request = named()
    match kind:
        case "samples":
            request.selection.samples.pixels.CopyFrom(request.add(PIXELS))
        case "embeddings":
            one = some_embeddings(COUNT)[0]
            request.selection.embeddings.learner.image.CopyFrom(request.add(one[0]))
        case "losses":
            request.selection.losses.learner.CopyFrom(request.add(np.ones(COUNT, np.float32)))
        case "recent":
            request.selection.recent.image.CopyFrom(request.add(np.ones((2, 16), np.float32)))
        case "positions":
            request.selection.positions.CopyFrom(request.add(np.arange(COUNT)))
    return request


@pytest.mark.parametrize("kind", ["samples", "embeddings", "losses", "recent", "positions"])
def test_a_shortlist_is_of_names_alone(warm, kind):
    error = refused(warm, candidates(kind))
    assert error.code().name == INVALID
    assert error_info(error)["field"] == kind


def without(field) -> Request:
    request = named()
    request.selection.ClearField(field)
    return request


def empty() -> Request:
    request = named()
    request.selection.sample_ids.ClearField("integers")
    return request


def huge(shape) -> Request:
    request = named()
    request.selection.sample_ids.integers.shape[:] = shape
    return request


GROUP = {"group": "g", "world_size": 2, "trainer_step": 1}


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (without("sample_ids"), INVALID, "sample_ids"),
        (empty(), INVALID, "sample_ids"),
        (without("prefilter"), INVALID, "prefilter"),
        (named(prefilter=0.99), INVALID, "prefilter"),
        (named(prefilter=float("nan")), INVALID, "prefilter"),
        (named(criterion=pb.CRITERION_HARD_LEARNER), INVALID, "prefilter"),
        (named(sub_batch_size=41), INVALID, "sub_batch_size"),
        (named(policy="jiont"), INVALID, "policy"),
        (named(**GROUP), INVALID, "world_size"),
        (named(rank=3), INVALID, "rank"),
        (named(request_id="a\nb"), INVALID, "request_id"),
        (named(range(201)), EXHAUSTED, "sample_ids.integers.shape"),
        (huge([10**18]), EXHAUSTED, "sample_ids.integers.shape"),
        (huge([0]), INVALID, "sample_ids.integers.shape"),
        (huge([41]), INVALID, "sample_ids.integers"),
        (named(["a", "a" * 241]), INVALID, "sample_ids.strings.lengths"),
        (named(payload_bytes=1 << 62), EXHAUSTED, "payload_bytes"),
        (named(run="another"), PRECONDITION, "run"),
    ],
)
def test_what_cannot_be_is_named(warm, request_, code, field):
    error = refused(warm, request_)
    assert error.code().name == code
    assert error_info(error)["field"].startswith(field), error.details()
    assert len(ask(warm, named()).indices) == 18


@pytest.mark.parametrize(
    ("positions", "field"),
    [
        (np.arange(COUNT)[::-1].copy(), "positions"),
        (np.zeros(COUNT, np.int64), "positions"),
        (np.arange(COUNT) - 1, "positions"),
        (np.arange(COUNT) + (1 << 32) - COUNT + 1, "positions"),
        (np.arange(COUNT - 1), "positions"),
        (np.arange(COUNT, dtype=np.int32), "positions"),
    ],
    ids=["falling", "equal", "negative", "too large", "too few", "of another dtype"],
)
def test_positions_that_cannot_be(warm, positions, field):
    request = with_ids(range(COUNT))
    request.selection.positions.CopyFrom(request.add(positions))
    error = warm.refuse(request)
    assert error.code().name == INVALID
    assert error_info(error)["field"].startswith(field)


def test_ranks_that_select_as_one_have_no_positions(warm):
    grouped = with_ids(range(COUNT), **GROUP)
    grouped.selection.positions.CopyFrom(grouped.add(np.arange(COUNT)))
    assert error_info(warm.refuse(grouped))["field"] == "positions"


def test_a_server_without_a_cache_or_without_models_cannot(server, plain_server):
    error = refused(server, named())
    assert error.code().name == PRECONDITION
    assert "prefilter is 2.0; knows no loss" in error.details()
    assert refused(plain_server, named()).code().name == PRECONDITION


def test_it_is_admitted_as_a_selection_is(start_sidecars, bundles, tmp_path):
    flags = {"cache": tmp_path / "cache", "max_inflight_bytes": 2000, "max_super_batch": 400}
    with start_sidecars() as start:
        tight = start(bundles.flags | flags)
        assert len(ask(tight, named(range(20))).indices) == 20
        # 8 bytes an id are received, and what the cache may know of 100 samples takes 64 bytes each.
        error = refused(tight, named(range(100)))
        assert error.code().name == EXHAUSTED
        assert error_info(error)["field"] == "bytes of all requests, decoded"
        assert error_info(refused(tight, named(range(400))))["field"] == "payload bytes of all requests"
        eventually(lambda: tight.pending() == 0)
        tight.signal(15)
        assert tight.process.wait(20) == 0
