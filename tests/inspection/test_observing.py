"""What is looked at in real selections: forms whose pictures are elsewhere, ranks, hostile content, and failures."""

import threading

import numpy as np
import pytest
import torch
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc
from selector_proto.v1 import selector_pb2
from support.model import POLICIES, WORDS, plan
from support.observations import observation
from support.processes import eventually
from support.rules import COUNT, PICKS, PIXELS, TOKENS, name
from support.wire import Request, raw, some_losses

from selector_server.engine.candidates.scalar_losses import ScalarLosses
from selector_server.engine.task import Rule, Task
from selector_server.inspection import observer as observer_module
from selector_server.inspection.budget import Budget
from selector_server.inspection.observer import CAPTION_BYTES, WAITING, SelectionObserver, rule_of
from selector_server.inspection.stores import Inspection
from selector_server.sampling import Criterion, Loss, ScalarScores

EASY = selector_pb2.CRITERION_EASY_REFERENCE


def asked(stub, method: str, **fields):
    return getattr(stub, method)(getattr(pb, f"{method}Request")(**fields), timeout=10)


@pytest.fixture(scope="module")
def watched(start_sidecars, bundles, tmp_path_factory):
    flags = {"inspect": "true", "inspect_content": "true", "cache": tmp_path_factory.mktemp("cache")}
    with start_sidecars() as start:
        server = start(bundles.flags | flags | {"max_text_bytes": 2 << 20})
        yield server, rpc.InspectionServiceStub(server.channel)


def after(server, stub, request):
    before = asked(stub, "GetOverview").totals.selections
    reply = server.select(request)
    eventually(lambda: asked(stub, "GetOverview").totals.selections > before)
    return reply


def gallery(stub, which, number=0):
    return next(iter(asked(stub, "ListPictures", super_batch=number, galleries=[which]).galleries)).candidates


def files() -> list[bytes]:
    import io

    from PIL import Image

    found = []
    for pixels in PIXELS:
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        found.append(file.getvalue())
    return found


def sent_files(**fields) -> Request:
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack(files()))
    request.selection.samples.tokens.CopyFrom(request.add(TOKENS))
    return name(request, range(1000, 1000 + COUNT)).set(seed=5, **fields)


def test_files_are_shown_as_the_learner_saw_them_and_the_cache_has_none(watched):
    server, stub = watched
    after(server, stub, sent_files())
    for one in gallery(stub, pb.GALLERY_HIGHEST_PICKED):
        assert one.picture.pixels == PIXELS[one.index].tobytes()
    # The reference is cached now, so that nobody decodes what is looked at by the reference alone.
    after(server, stub, sent_files(criterion=EASY))
    number = asked(stub, "GetOverview").totals.selections
    picked = gallery(stub, pb.GALLERY_HIGHEST_PICKED, number)
    assert {one.missing for one in picked} == {
        "captions came as tokens; the picture was not decoded: what is needed of it was known"
    }
    assert not any(one.HasField("picture") for one in picked)
    assert all(one.HasField("reference_loss") and not one.HasField("learner_loss") for one in picked)


def test_some_pictures_are_in_the_references_input_alone(watched):
    """Half of the candidates are known to the cache; of the others the reference's input has the pictures."""
    server, stub = watched
    request = Request()
    request.selection.samples.encoded_images.CopyFrom(request.pack(files()))
    request.selection.samples.tokens.CopyFrom(request.add(TOKENS))
    name(request, [*range(1000, 1000 + COUNT // 2), *range(5000, 5000 + COUNT // 2)])
    after(server, stub, sent_files())
    after(server, stub, request.set(seed=6, criterion=EASY, sub_batch_size=COUNT // 2))
    shown = [*gallery(stub, pb.GALLERY_HIGHEST_PICKED), *gallery(stub, pb.GALLERY_LOWEST_PICKED)]
    shown += gallery(stub, pb.GALLERY_RANDOM_DROPPED)
    unknown = [one for one in shown if one.index >= COUNT // 2]
    assert unknown
    for one in shown:
        assert one.HasField("picture") == (one.index >= COUNT // 2)
    assert all(one.picture.pixels == PIXELS[one.index].tobytes() for one in unknown)


def test_prefiltered_candidates_are_told(watched):
    server, stub = watched
    after(server, stub, sent_files())
    after(server, stub, sent_files(prefilter=2.0))
    left_out = gallery(stub, pb.GALLERY_PREFILTERED)
    assert {one.fate for one in left_out} == {pb.FATE_PREFILTERED}
    assert {one.missing for one in left_out} == {
        "captions came as tokens; the picture was not decoded: the prefilter left it out"
    }
    assert all(one.id and not one.HasField("score") for one in left_out)
    seen = asked(stub, "GetSuperBatch")
    assert seen.point.prefiltered == COUNT - 2 * PICKS
    assert dict(asked(stub, "GetOverview").rule)["prefilter"] == "2"


def test_ranks_that_select_as_one_are_one_super_batch(watched):
    server, stub = watched
    before = asked(stub, "GetOverview").totals
    replies = {}

    def ask(rank):
        request = raw(PIXELS, TOKENS, group="g", trainer_step=7, rank=rank, world_size=2, seed=1, fallbacks=rank + 1)
        request.selection.tag_strings.CopyFrom(request.pack([b"rank %d" % rank] * COUNT))
        replies[rank] = server.select(request)

    threads = [threading.Thread(target=ask, args=[rank]) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: asked(stub, "GetOverview").totals.selections == before.selections + 1)
    seen = asked(stub, "GetSuperBatch")
    picked = {index for index, fate in enumerate(seen.fates) if fate == pb.FATE_PICKED}
    assert picked == {rank * COUNT + index for rank, reply in replies.items() for index in reply.indices}
    assert asked(stub, "GetOverview").totals.fallbacks - before.fallbacks == 3
    tags = {one.name: (one.candidates, one.picked) for one in asked(stub, "ListSlices").tags}
    assert tags["rank 0"] == tags["rank 1"] == (COUNT, PICKS)
    [one, *_] = gallery(stub, pb.GALLERY_HIGHEST_PICKED)
    assert one.picture.pixels == PIXELS[one.index % COUNT].tobytes()


HOSTILE = [
    b"<script>alert(1)</script> w1",
    "w2 \u202egnp.exe\x00\x1b[31m".encode(),
    b"\xff\xfe w3",
    b"w4 " + b"x" * 1_000_000,
    b"w5 " + "\U0001d54f".encode() * 3000,
]


def test_hostile_content_is_clipped_and_kept_as_text(watched):
    server, stub = watched
    captions = [HOSTILE[row % len(HOSTILE)] for row in range(COUNT)]
    request = Request()
    request.selection.samples.pixels.CopyFrom(request.add(PIXELS))
    # The server refuses what is no text, so that this one is excluded; its bytes are shown all the same.
    request.selection.samples.strings.CopyFrom(request.pack(captions))
    request.selection.sample_ids.strings.CopyFrom(request.pack([b"<img src=x>%d" % row for row in range(COUNT)]))
    request.selection.tag_strings.CopyFrom(request.pack([b"\xff<b>\n"] * COUNT))
    after(server, stub, request.set(bad_samples=selector_pb2.BAD_SAMPLES_EXCLUDE))
    for which in (pb.GALLERY_HIGHEST_PICKED, pb.GALLERY_RANDOM_DROPPED, pb.GALLERY_EXCLUDED):
        for one in gallery(stub, which):
            assert one.caption == captions[one.index].decode(errors="replace")[:512]
            assert one.tag == "\ufffd<b>\n"
            assert one.id == f"<img src=x>{one.index}"
    assert any(len(one.caption) == 512 for one in gallery(stub, pb.GALLERY_RANDOM_DROPPED))
    assert max(map(len, (word.name for word in asked(stub, "ListSlices").words))) <= 64
    assert asked(stub, "GetSample", id="<img src=x>3").seen == 1
    assert "script" not in server.text
    assert "could not be" not in server.text


# In this process


def task(count=12, picks=3):
    values = np.random.default_rng(0).random(count, np.float32)
    rule = Rule(Criterion.HARD_LEARNER, Criterion.HARD_LEARNER, Loss.SIGMOID)
    return Task(ScalarLosses(values, None), POLICIES["independent"], rule, plan(picks, 1)), values


def observe(observer, scores=None):
    from selector_server.engine.task import Result

    given, values = task()
    indices = np.argsort(-values)[:3]
    result = Result(indices, given.plan, "independent", None, 0.0, 0.0, None)
    scores = ScalarScores(torch.from_numpy(values)) if scores is None else scores
    observer.observe(given, scores, result, None)


def test_who_is_behind_drops_and_never_waits():
    dropped = []
    inspection = Inspection(8, content=False)
    observer = SelectionObserver(inspection, False, dropped=lambda: dropped.append(1))  # nobody takes what waits
    for _ in range(WAITING + 3):
        observe(observer)
    assert len(dropped) == 3
    observer.start()
    observer.stop()
    assert inspection.totals.selections == WAITING


class Broken:
    """Scores that cannot be looked at."""

    def own(self):
        raise RuntimeError("the device is gone")


def test_a_failure_to_look_ends_no_selection(caplog):
    dropped = []
    inspection = Inspection(8, content=False)
    observer = SelectionObserver(inspection, False, dropped=lambda: dropped.append(1))
    observer.start()
    observe(observer, Broken())
    inspection.window = None  # what keeps fails, too
    observe(observer)
    observer.stop()
    assert len(dropped) == 2
    said = [record.getMessage() for record in caplog.records]
    assert said == ["a selection could not be looked at", "a selection could not be kept for inspection"]


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_a_spent_budget_leaves_numbers_and_pictures_now_and_then(monkeypatch, seconds):
    monkeypatch.setattr(observer_module, "PICTURE_SECONDS", seconds)
    budget = Budget(0.0, 0.0, 1e-9)
    inspection = Inspection(8, content=True)
    observer = SelectionObserver(inspection, True, budget=budget)
    observer.start()
    for _ in range(3):
        observe(observer)
    observer.stop()
    assert inspection.totals.selections == 3
    assert budget.left is False
    last = inspection.window.find(0)
    asked_for = "no pictures of this one were kept" if seconds else "candidates came as losses: there are no pictures"
    assert last.content.no_picture == asked_for


def test_the_rule_as_people_read_it():
    assert rule_of(task()[0]) == {
        "policy": "independent",
        "candidates": "12",
        "picks": "3",
        "criterion": "hard-learner",
        "pair_criterion": "hard-learner",
        "loss": "sigmoid",
        "gain": "100",
        "chunks": "1",
        "draw": "sample",
    }


def test_captions_are_clipped_before_they_wait():
    from dataclasses import replace

    from selector_server.engine.annotations import Annotations
    from selector_server.inspection.observer import _content

    given, _ = task()
    given = replace(given, annotations=Annotations(captions=[b"x" * 1_000_000] * 12))
    content = _content(given, observation(12, excluded=0), pictures=False)
    assert {len(caption) for caption in content.captions} == {CAPTION_BYTES}


def test_a_thousand_asks_take_turns(watched):
    """Each waits for the one before it, and selections go on meanwhile."""
    server, stub = watched
    calls = [stub.GetOverview.future(pb.GetOverviewRequest(), timeout=60) for _ in range(200)]
    reply = server.select(some_losses(), timeout=30)
    assert len(reply.indices) == 4
    assert {len(call.result().run) for call in calls} == {len("default")}


def test_words_are_shown_in_slices(watched):
    server, stub = watched
    request = Request()
    request.selection.samples.pixels.CopyFrom(request.add(PIXELS))
    captions = [f"Giraffe {WORDS[row[0]]}".encode() for row in TOKENS]
    request.selection.samples.strings.CopyFrom(request.pack(captions))
    reply = after(server, stub, request.set(seed=9))
    words = {one.name: (one.candidates, one.picked) for one in asked(stub, "ListSlices").words}
    assert words["giraffe"] == (COUNT, len(reply.indices))
