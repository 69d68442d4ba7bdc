"""What is kept, and how much: window, history, budget, and the pictures that are worth a look."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import selector_pb2
from support.observations import observation

from selector_server.encoding.reference_cache import integer_key, string_key
from selector_server.errors import InvalidRequest, NotPossible
from selector_server.inspection import local_source
from selector_server.inspection import window as windows
from selector_server.inspection.budget import Budget
from selector_server.inspection.history import History
from selector_server.inspection.local_source import LocalSource
from selector_server.inspection.observation import Fate
from selector_server.inspection.pictures import SHOWN, SIDE, galleries, reduced
from selector_server.inspection.stores import TRAINERS, Inspection
from selector_server.inspection.window import WITH_CONTENT, WITH_PICTURES, Window


def keys(size: int, start=0) -> list[bytes]:
    return [integer_key(start + index) for index in range(size)]


def shown(size=20, number=1, **changes):
    pictures = {0: np.full((4, 4, 3), number % 256, np.uint8)}
    return observation(size, number=number, ids=keys(size), captions=[b"a"] * size, pictures=pictures, **changes)


# The window


def test_old_super_batches_go_and_content_goes_before():
    window = Window(30)
    for number in range(1, 51):
        window.add(shown(number=number))
    assert [one.number for one in window] == list(range(21, 51))
    assert [one.number for one in window if one.content is not None] == list(range(51 - WITH_CONTENT, 51))
    assert window.find(0).number == 50
    assert window.find(21).number == 21
    assert window.find(20) is None
    assert window.find(51) is None


def test_the_last_one_with_pictures_is_found():
    window = Window(30)
    assert window.find(0) is None
    window.add(observation(number=1))
    assert window.find(0, pictures=True).number == 1
    window.add(shown(number=2))
    window.add(observation(number=3))
    assert window.find(0, pictures=True).number == 2
    assert window.find(0).number == 3


def test_pictures_stay_until_there_are_newer_ones():
    """Where super-batches come faster than pictures can be kept, who looks sees the last ones there are."""
    window = Window(30)
    for number in range(1, 101):
        window.add(shown(number=number) if number in (3, 50) else observation(number=number, captions=[b"a"] * 20))
    assert [one.number for one in window] == list(range(71, 101))
    assert window.find(0, pictures=True).number == window.find(50).number == 50
    assert window.find(50).content.pictures
    assert window.find(3) is None
    assert [one.number for one in window.with_content()] == [*range(100, 100 - WITH_CONTENT, -1), 50]
    window.add(shown(number=101))
    assert window.find(0, pictures=True).number == 101
    assert [one.number for one in window.with_content()] == list(range(101, 101 - WITH_CONTENT, -1))


def test_pictures_go_before_words():
    window = Window(30)
    for number in range(1, 11):
        window.add(shown(number=number))
    contents = {one.number: one.content for one in window}
    assert [number for number, content in contents.items() if content.pictures] == list(range(11 - WITH_PICTURES, 11))
    assert all(any(content.captions) for content in contents.values())
    assert contents[1].no_picture == "pictures of this one are no longer kept"


def test_bytes_bound_it_too(monkeypatch):
    monkeypatch.setattr(windows, "NUMBER_BYTES", 100_000)
    monkeypatch.setattr(windows, "CONTENT_BYTES", 200_000)
    window = Window(256)
    for number in range(1, 60):
        window.add(shown(100, number) if number < 50 else shown(300, number))
    kept = list(window)
    assert sum(one.nbytes for one in kept) <= 100_000
    assert 1 < len(kept) < 60
    contents = [one.content for one in kept if one.content is not None]
    assert 0 < sum(content.nbytes for content in contents) <= 200_000
    window.add(shown(10_000, 60))  # alone larger than all may be
    [only] = window
    assert only.number == 60
    assert sum(map(bool, only.content.ids)) < 7 * SHOWN
    [highest, *_] = LocalSource(filled([only]), "r").list_pictures(pb.ListPicturesRequest()).galleries
    assert all(one.id and one.caption for one in highest.candidates)


def filled(seen, **settings) -> Inspection:
    inspection = Inspection(settings.pop("window", 256), settings.pop("content", True), **settings)
    for one in seen:
        inspection.add(one)
    return inspection


def test_memory_does_not_grow():
    inspection = Inspection(32, content=True)
    rng = np.random.default_rng(0)

    def add(count):
        for number in range(count):
            names = [string_key(f"{number}-{index}") for index in range(200)]
            captions = [b"word%d %d" % (number, index) for index in range(200)]
            one = shown(200, number)
            inspection.add(replace(one, content=replace(one.content, ids=names, captions=captions)))

    add(100)
    tracemalloc.start()
    add(100)
    first = tracemalloc.get_traced_memory()[0]
    add(400)
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 300_000
    assert rng is not None


def test_trainers_are_bounded_and_counts_never_fall():
    inspection = filled([observation(number=n, trainer=f"group {n}", fallbacks=1) for n in range(TRAINERS + 50)])
    assert sum(inspection.totals.fallbacks.values()) == TRAINERS
    inspection = filled([observation(trainer="", fallbacks=count) for count in (3, 5, 0, 2)])
    assert inspection.totals.fallbacks == {"": 5}


# The history


def test_a_ring_of_sightings():
    history = History(100)
    for number in range(1, 8):
        history.add(observation(30, number=number, step=10 * number), keys(30, start=number))
    found = history.of(integer_key(7))
    assert [(one.number, one.step) for one in found] == [(5, 50), (6, 60), (7, 70)]
    one = observation(30, number=7)
    assert found[-1].fate == one.fates[0]
    assert found[-1].learner == one.learner[0]
    assert history.of(integer_key(99)) == []
    assert history.of(string_key("7")) == []


def test_a_super_batch_that_is_larger_than_the_history():
    history = History(10)
    history.add(observation(30, number=1), keys(30))
    assert len(history.of(integer_key(9))) == 1
    assert history.of(integer_key(10)) == []
    history.add(observation(30, number=2), keys(30))
    assert [one.number for one in history.of(integer_key(3))] == [2]


def test_models_that_did_not_look():
    history = History(100)
    history.add(observation(10, learner=None), keys(10))
    [one] = history.of(integer_key(0))
    assert np.isnan(one.learner)
    assert not np.isnan(one.reference)
    told = LocalSource(filled([shown(10, learner=None)]), "r").get_sample(pb.GetSampleRequest(id="0"))
    assert not told.sightings[0].HasField("learner_loss")


@pytest.mark.parametrize("name", ["-9223372036854775808", "07", "9" * 400, "٣", "1_0", "日本"])
def test_ids_that_are_odd_numbers_or_none(name):
    """What is no integer of 64 bits, written as one, is a text."""
    seen = observation(10, ids=[string_key(name[:100]), *keys(9)])
    source = LocalSource(filled([seen]), "r")
    assert source.get_sample(pb.GetSampleRequest(id=name[:100])).seen == 1
    assert source.get_sample(pb.GetSampleRequest(id="5")).seen == 1


def test_a_sample_without_an_id_is_found_by_its_place():
    seen = observation(10, captions=[b"c%d" % index for index in range(10)])
    source = LocalSource(filled([seen]), "r")
    told = source.get_sample(pb.GetSampleRequest(super_batch=1, index=4))
    assert (told.id, told.last.caption, told.seen, len(told.sightings)) == ("", "c4", 1, 1)
    with pytest.raises(InvalidRequest, match="index is 10; must be below the number of candidates, 10"):
        source.get_sample(pb.GetSampleRequest(super_batch=1, index=10))
    with pytest.raises(InvalidRequest, match="super_batch is 2; is not kept; the last one is 1"):
        source.get_sample(pb.GetSampleRequest(super_batch=2))
    by_place = LocalSource(filled([shown(number=1), shown(number=2)]), "r")
    told = by_place.get_sample(pb.GetSampleRequest(super_batch=2, index=0))
    assert (told.id, told.seen) == ("0", 2)
    assert told == by_place.get_sample(pb.GetSampleRequest(id="0"))


def test_a_picture_of_long_ago_is_better_than_none():
    newest = observation(20, number=2, ids=keys(20), captions=[b"new"] * 20)
    told = LocalSource(filled([shown(number=1), newest]), "r").get_sample(pb.GetSampleRequest(id="0"))
    assert (told.last.caption, told.last.picture.height, told.last.missing) == ("new", 4, "")


def test_verdicts_are_worked_out_once_for_what_is_new(monkeypatch):
    judged = []
    monkeypatch.setattr(
        local_source, "verdicts", lambda *of: judged.append(of) or [pb.Verdict(finding=f"{len(judged)}.")]
    )
    unserved = [None]
    inspection = filled([observation(number=1)])
    source = LocalSource(inspection, "r", lambda: unserved[0])

    def finding():
        return source.get_overview(pb.GetOverviewRequest()).verdicts[0].finding

    assert [finding(), finding()] == ["1.", "1."]
    inspection.add(observation(number=2))
    assert [finding(), finding()] == ["2.", "2."]
    unserved[0] = selector_pb2.UnservedWeights(reason="of another model")
    assert finding() == "3."
    inspection.add(observation(number=3, trainer="t", fallbacks=2))
    assert finding() == "4."


def test_nothing_was_selected_yet():
    source = LocalSource(Inspection(4, content=True), "a run")
    overview = source.get_overview(pb.GetOverviewRequest())
    assert (overview.run, len(overview.points), overview.HasField("trainer_step")) == ("a run", 0, False)
    for call, request in (
        (source.get_super_batch, pb.GetSuperBatchRequest()),
        (source.list_pictures, pb.ListPicturesRequest()),
    ):
        with pytest.raises(NotPossible, match="nothing was selected yet"):
            call(request)
    with pytest.raises(NotPossible, match="nothing was selected yet"):
        list(source.download_super_batches(pb.DownloadSuperBatchesRequest()))
    assert source.get_sample(pb.GetSampleRequest(id="1")).seen == 0
    assert source.list_slices(pb.ListSlicesRequest()).pick_rate == 0


# The budget


def test_a_budget_is_earned_by_processor_time_and_by_time():
    processor, now = [5.0], [7.0]
    budget = Budget(0.01, 0.001, 0.1, lambda: processor[0], lambda: now[0])

    def earn(more=0.0, seconds=0.0):
        processor[0] += more
        now[0] += seconds
        budget.earn()

    assert budget.left
    budget.spend(0.3)
    assert not budget.left
    for _ in range(19):
        earn(1.0)
        assert not budget.left
    earn(2.0)
    assert budget.left
    budget.spend(0.02)
    assert not budget.left
    earn(seconds=20)
    assert budget.left
    earn(1e6)
    budget.spend(0.11)
    assert not budget.left


# Pictures


def test_galleries_hold_what_they_say():
    seen = observation(200, picks=40, excluded=3, number=5)
    fates = seen.fates.copy()
    dropped = np.flatnonzero(fates == Fate.DROPPED)
    fates[dropped[:20]], fates[dropped[20:25]] = Fate.PREFILTERED, Fate.KEPT_APART
    seen = replace(seen, fates=fates)
    found = galleries(seen)
    scores = seen.scores
    picked, dropped = (np.flatnonzero(fates == fate) for fate in (Fate.PICKED, Fate.DROPPED))
    assert found[pb.GALLERY_HIGHEST_PICKED].tolist() == picked[np.argsort(-scores[picked])][:SHOWN].tolist()
    assert found[pb.GALLERY_LOWEST_PICKED].tolist() == picked[np.argsort(scores[picked])][:SHOWN].tolist()
    assert found[pb.GALLERY_HIGHEST_DROPPED].tolist() == dropped[np.argsort(-scores[dropped])][:SHOWN].tolist()
    assert set(found[pb.GALLERY_RANDOM_DROPPED]) <= set(dropped)
    assert set(found[pb.GALLERY_PREFILTERED]) <= set(np.flatnonzero(fates == Fate.PREFILTERED))
    assert len(found[pb.GALLERY_KEPT_APART]) == 5
    assert found[pb.GALLERY_EXCLUDED].tolist() == [197, 198, 199]
    assert all(len(rows) <= SHOWN for rows in found.values())
    again = galleries(seen)
    assert all((again[gallery] == rows).all() for gallery, rows in found.items())


def test_without_scores_the_draw_orders_picks():
    found = galleries(observation(50, picks=10, excluded=0, scores=None, learner=None, reference=None))
    assert pb.GALLERY_HIGHEST_DROPPED not in found
    assert pb.GALLERY_EXCLUDED not in found
    assert len(found[pb.GALLERY_HIGHEST_PICKED]) == SHOWN


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((8, 8, 3), (8, 8, 3)),
        ((112, 112, 3), (96, 96, 3)),
        ((96, 180, 1), (51, 96, 1)),
        ((1, 150, 3), (1, 96, 3)),
        ((190, 1, 1), (96, 1, 1)),
        ((120, 60, 4), (96, 48, 1)),
    ],
)
def test_pictures_of_any_size_become_small(shape, wanted):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    small = reduced(picture)
    assert small.shape == wanted
    assert max(small.shape[:2]) <= SIDE
    if shape[:2] == wanted[:2]:
        assert (small == picture).all()


def test_a_small_picture_shows_the_same():
    wave = (127 + 100 * np.sin(np.arange(112) / 12)).astype(np.uint8)
    picture = np.stack([np.tile(wave, (112, 1))] * 3, axis=2)
    expected = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BILINEAR))
    assert (reduced(picture) == expected).all()
