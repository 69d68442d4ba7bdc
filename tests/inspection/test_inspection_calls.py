"""A real sidecar's inspection: what its calls say of real selections, with content and without."""

import numpy as np
import pytest
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from selector_proto.v1 import selector_pb2
from support.model import SIDE, WORDS, embed
from support.processes import eventually
from support.rules import COUNT, PICKS, PIXELS, TOKENS, name
from support.wire import Request, error_info, raw, some_losses

CAPTIONS = [" ".join(WORDS[token] for token in row).encode() for row in TOKENS]
TAGS = [b"red" if row % 2 else b"<b>blue</b>" for row in range(COUNT)]


def asked(stub, method: str, **fields):
    return getattr(stub, method)(getattr(pb, f"{method}Request")(**fields), timeout=10)


def after(server, stub, request, timeout=10):
    """The reply to a selection, once the inspection has kept it."""
    before = asked(stub, "GetOverview").totals.selections
    reply = server.select(request)
    eventually(lambda: asked(stub, "GetOverview").totals.selections > before, timeout)
    return reply


def captioned(**fields) -> Request:
    """Samples with captions, ids and tags."""
    request = Request()
    request.selection.samples.pixels.CopyFrom(request.add(PIXELS))
    request.selection.samples.strings.CopyFrom(request.pack(CAPTIONS))
    request.selection.tag_strings.CopyFrom(request.pack(TAGS))
    return name(request, range(COUNT)).set(seed=3, **fields)


@pytest.fixture(scope="module")
def watched(start_sidecars, bundles):
    """A sidecar that keeps content, and a stub for its inspection."""
    with start_sidecars() as start:
        server = start(bundles.flags | {"inspect": "true", "inspect_content": "true", "inspect_window": 20})
        yield server, rpc.InspectionServiceStub(server.channel)


@pytest.fixture(scope="module")
def counted(start_sidecars, bundles):
    """A sidecar that keeps numbers alone."""
    with start_sidecars() as start:
        server = start(bundles.flags | {"inspect": "true"})
        yield server, rpc.InspectionServiceStub(server.channel)


def test_a_super_batch_is_told_in_numbers(watched, bundles):
    server, stub = watched
    reply = after(server, stub, captioned(trainer_step=70))
    seen = asked(stub, "GetSuperBatch")
    picked = [index for index, fate in enumerate(seen.fates) if fate == pb.FATE_PICKED]
    assert picked == sorted(reply.indices)
    assert [seen.order[index] for index in reply.indices] == list(range(1, PICKS + 1))
    assert set(seen.fates) == {pb.FATE_PICKED, pb.FATE_DROPPED}
    learner, reference = (
        -np.log(1 / (1 + np.exp(-embed(model, PIXELS, TOKENS).own_logits.numpy())))
        for model in (bundles.learner, bundles.reference)
    )
    np.testing.assert_allclose(seen.learner_losses, learner, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.reference_losses, reference, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.scores, learner - reference, rtol=1e-4, atol=1e-3)
    assert seen.point.picked == pytest.approx(np.mean((learner - reference)[picked]), rel=1e-3)
    assert seen.point.pool_learner_loss == pytest.approx(learner.mean(), rel=1e-3)
    assert (seen.point.trainer_step, seen.point.candidates, seen.point.picks) == (70, COUNT, PICKS)


def test_the_overview_counts_and_says_the_rule(watched):
    server, stub = watched
    first = asked(stub, "GetOverview")
    for step in (80, 81):
        after(server, stub, captioned(trainer_step=step, gain=7.0, max_similarity=0.99, fallbacks=step - 79))
    seen = asked(stub, "GetOverview", after=first.totals.selections)
    assert [point.trainer_step for point in seen.points] == [80, 81]
    assert [point.super_batch for point in seen.points] == [first.totals.selections + one for one in (1, 2)]
    assert seen.totals.candidates - first.totals.candidates == 2 * COUNT
    assert seen.totals.picked - first.totals.picked == 2 * PICKS
    assert seen.totals.fallbacks == 2
    assert (seen.trainer_step, seen.weights.version, seen.content) == (81, 0, True)
    rule = {"policy": "joint", "criterion": "learnability", "gain": "7", "max_similarity": "0.99", "draw": "sample"}
    assert rule.items() <= dict(seen.rule).items()
    assert any("were drawn uniformly" in verdict.finding for verdict in seen.verdicts)
    assert seen.verdicts[0].level >= seen.verdicts[-1].level


def test_pictures_are_those_that_were_sent(watched):
    server, stub = watched
    reply = after(server, stub, captioned())
    shown = {one.gallery: one.candidates for one in asked(stub, "ListPictures").galleries}
    highest = shown[pb.GALLERY_HIGHEST_PICKED]
    assert {one.index for one in highest} <= set(reply.indices)
    assert sorted((one.score for one in highest), reverse=True) == [one.score for one in highest]
    for one in (*highest, *shown[pb.GALLERY_RANDOM_DROPPED]):
        assert (one.picture.height, one.picture.width, one.picture.channels) == (SIDE, SIDE, 3)
        assert one.picture.pixels == PIXELS[one.index].tobytes()
        assert (one.id, one.caption, one.tag) == (
            str(one.index),
            CAPTIONS[one.index].decode(),
            TAGS[one.index].decode(),
        )
        assert one.missing == ""
    bare = asked(stub, "ListPictures", galleries=[pb.GALLERY_HIGHEST_PICKED], without_pixels=True).galleries
    assert [one.gallery for one in bare] == [pb.GALLERY_HIGHEST_PICKED]
    assert all(one.picture.height == SIDE and not one.picture.pixels for one in bare[0].candidates)


def test_what_is_missing_is_said(watched):
    server, stub = watched
    after(server, stub, raw(PIXELS, TOKENS))
    [first, *_] = asked(stub, "ListPictures").galleries
    assert {one.missing for one in first.candidates} == {"captions came as tokens"}
    after(server, stub, some_losses(30))
    number = asked(stub, "GetOverview").totals.selections
    [first, *_] = asked(stub, "ListPictures", super_batch=number).galleries
    [said] = {one.missing for one in first.candidates}
    assert said == "there are no captions; candidates came as losses: there are no pictures"


def test_excluded_candidates_have_their_reason(watched):
    server, stub = watched
    exclusion = selector_pb2.Exclusion(reason=selector_pb2.EXCLUSION_REASON_UNREADABLE, indices=[5, 9], first="broken")
    after(server, stub, captioned(bad_samples=selector_pb2.BAD_SAMPLES_EXCLUDE, exclusions=[exclusion]))
    [excluded] = asked(stub, "ListPictures", galleries=[pb.GALLERY_EXCLUDED]).galleries
    assert [one.index for one in excluded.candidates] == [5, 9]
    assert {one.reason for one in excluded.candidates} == {selector_pb2.EXCLUSION_REASON_UNREADABLE}
    assert {one.fate for one in excluded.candidates} == {pb.FATE_EXCLUDED}
    seen = asked(stub, "GetSuperBatch")
    assert np.isnan(seen.scores[5])
    assert not np.isnan(seen.scores[4])
    assert seen.point.excluded == 2


def test_picks_that_are_kept_apart_are_told(watched):
    server, stub = watched
    after(server, stub, captioned(max_similarity=0.3))
    seen = asked(stub, "GetSuperBatch")
    assert seen.point.kept_apart == sum(fate == pb.FATE_KEPT_APART for fate in seen.fates) > 0
    assert seen.point.picks == PICKS


def test_one_sample_has_a_history(watched):
    server, stub = watched
    before = asked(stub, "GetSample", id="7")
    replies = [after(server, stub, captioned(trainer_step=step)) for step in (90, 91)]
    seen = asked(stub, "GetSample", id="7")
    assert seen.seen - before.seen == 2
    assert seen.picked - before.picked == sum(7 in reply.indices for reply in replies)
    assert [one.trainer_step for one in seen.sightings[-2:]] == [90, 91]
    assert (seen.last.caption, seen.last.id) == (CAPTIONS[7].decode(), "7")
    assert seen.sightings[-1].learner_loss == pytest.approx(asked(stub, "GetSuperBatch").learner_losses[7])
    assert asked(stub, "GetSample", id="nobody").seen == 0
    for wrong in ("", "x" * 513):
        with pytest.raises(Exception, match="must have 1 to 512 characters"):
            asked(stub, "GetSample", id=wrong)


def test_slices_count_tags_and_words(watched):
    server, stub = watched
    before, totals = asked(stub, "ListSlices"), asked(stub, "GetOverview").totals
    reply = after(server, stub, captioned())
    seen = asked(stub, "ListSlices")

    def grown(kind: str) -> dict[str, tuple[int, int]]:
        old = {one.name: (one.candidates, one.picked) for one in getattr(before, kind)}
        new = {one.name: (one.candidates, one.picked) for one in getattr(seen, kind)}
        return {key: (one[0] - old.get(key, (0, 0))[0], one[1] - old.get(key, (0, 0))[1]) for key, one in new.items()}

    tags = grown("tags")
    odd = sum(index % 2 for index in reply.indices)
    assert tags["red"] == (COUNT // 2, odd)
    assert tags["<b>blue</b>"] == (COUNT // 2, PICKS - odd)
    assert seen.pick_rate == (totals.picked + PICKS) / (totals.candidates + COUNT)


def test_tags_may_be_integers(watched):
    server, stub = watched
    request = raw(PIXELS, TOKENS)
    request.selection.tags.CopyFrom(request.add(np.full(COUNT, -12, np.int64)))
    after(server, stub, request)
    assert {one.name: one.candidates for one in asked(stub, "ListSlices").tags}["-12"] == COUNT


def test_the_window_is_bounded(watched):
    server, stub = watched
    for _ in range(21):
        server.select(some_losses())
    before = asked(stub, "GetOverview").totals.selections
    after(server, stub, some_losses())
    seen = asked(stub, "GetOverview")
    assert len(seen.points) == 20
    with pytest.raises(Exception, match="super_batch is 1; is not kept; the last one is") as caught:
        asked(stub, "GetSuperBatch", super_batch=1)
    assert error_info(caught.value)["reason"] == "INVALID_REQUEST"
    assert seen.totals.selections > before


def test_without_content_there_are_numbers_alone(counted):
    server, stub = counted
    after(server, stub, captioned())
    everything = [asked(stub, method) for method in ("GetOverview", "GetSuperBatch", "ListPictures", "ListSlices")]
    for reply in everything:
        said = reply.SerializeToString()
        assert not any(secret in said for secret in (b"red", b"blue", CAPTIONS[0], PIXELS[0].tobytes()[:20]))
        assert not getattr(reply, "content", False)
    assert len(everything[1].fates) == COUNT
    [first, *_] = everything[2].galleries
    assert all(not (one.id or one.caption or one.tag or one.HasField("picture")) for one in first.candidates)
    with pytest.raises(Exception, match="start the server with --inspect-content"):
        asked(stub, "GetSample", id="7")


def test_a_sidecar_that_looks_at_nothing_says_so(plain_server):
    with pytest.raises(Exception, match="start the server with --inspect") as caught:
        asked(rpc.InspectionServiceStub(plain_server.channel), "GetOverview")
    assert error_info(caught.value)["reason"] == "NOT_POSSIBLE"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda request: request.add(np.zeros(3, np.int64)), "tags.shape is \\[3\\]; must be \\[40\\]"),
        (lambda request: request.add(np.zeros(COUNT, np.float32)), "tags.dtype is FP32; must be I32 or I64"),
    ],
    ids=["few", "floats"],
)
def test_tags_that_cannot_be(counted, change, message):
    request = raw(PIXELS, TOKENS)
    request.selection.tags.CopyFrom(change(request))
    with pytest.raises(Exception, match=message):
        counted[0].select(request)


def test_tag_strings_that_cannot_be(counted):
    request = raw(PIXELS, TOKENS)
    request.selection.tag_strings.CopyFrom(request.pack([b"x" * 65] * COUNT))
    with pytest.raises(Exception, match=r"tag_strings.lengths is 65; each must be 0 to 64 bytes"):
        counted[0].select(request)
    request.selection.ClearField("payload_bytes")
    request.selection.tag_strings.CopyFrom(request.pack([b"x"] * COUNT))
    request.selection.tags.CopyFrom(request.add(np.zeros(COUNT, np.int64)))
    with pytest.raises(Exception, match="tag_strings is set; tags is set, too"):
        counted[0].select(request)
