"""What the demo's arms are fed with: neighbours as shards give them, and pictures that are moved."""

from itertools import islice

import numpy as np
import pytest
from selector_tools.demo import data, pool
from selector_tools.demo.training import shifted


def icons(families: str, concepts: str) -> pool.IconSet:
    n = len(families)
    return pool.IconSet(np.zeros((n, 32, 32), np.uint8), ("x",) * n, tuple(concepts), tuple(families))


def test_neighbours_are_of_one_family_and_then_of_one_concept() -> None:
    order = data.stored_order(icons("bababb", "yzxzxx"))
    assert order.tolist() == [1, 3, 2, 4, 5, 0]  # rows that are equal in both keep their order


def test_a_super_batch_has_whole_runs_of_neighbours_and_an_epoch_each_pair_at_most_once() -> None:
    order = np.random.default_rng(1).permutation(1000).astype(np.int64)
    place = np.argsort(order)
    per_epoch = (1000 - data.RUN) // data.RUN // 4  # 30 or 31 runs, four at once
    drawn = list(islice(data.runs(order, 4 * data.RUN, seed=0), 3 * per_epoch))
    starts = []
    for epoch in np.split(np.stack(drawn), 3):
        assert len(np.unique(epoch)) == epoch.size
        places = place[epoch.reshape(-1, data.RUN)]
        assert (np.diff(places, axis=1) == 1).all()
        assert len(set((places[:, 0] % data.RUN).tolist())) == 1  # all runs of an epoch are cut alike
        assert (np.diff(places[:, 0]) < 0).any()  # and come in random order
        starts.append(int(places[0, 0] % data.RUN))
    assert len(set(starts)) > 1  # the next epoch cuts elsewhere


def test_the_same_seed_gives_the_same_super_batches() -> None:
    order = np.arange(400)

    def first(seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in islice(data.runs(order, 64, seed), 12)]

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize(("count", "size"), [(1000, 100), (1000, 0), (94, 64)])
def test_a_super_batch_that_runs_cannot_fill_is_refused(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"super-batch is {size}; must be a multiple of 32 and at most {count - 31}"):
        next(data.runs(np.arange(count), size, seed=0))


def test_the_smallest_pool_fills_a_super_batch_wherever_it_is_cut() -> None:
    batches = data.runs(np.arange(95), 64, seed=0)
    assert all(len(set(next(batches).tolist())) == 64 for _ in range(100))


def test_each_picture_is_moved_on_its_own_and_blank_paper_moves_in() -> None:
    ink = np.full((64, 8, 8, 1), 255, np.uint8)
    moved = shifted(ink, 3, np.random.default_rng(0))
    assert moved.shape == ink.shape
    assert moved.dtype == np.uint8
    sides = [(int(picture[:, 4, 0].astype(bool).sum()), int(picture[4, :, 0].astype(bool).sum())) for picture in moved]
    assert {side for pair in sides for side in pair} == {5, 6, 7, 8}
    assert len(set(sides)) > 8


def test_a_moved_picture_keeps_what_stays_on_the_paper() -> None:
    dot = np.zeros((100, 9, 9, 1), np.uint8)
    dot[:, 4, 4] = 200
    moved = shifted(dot, 3, np.random.default_rng(0))
    assert (moved.sum(axis=(1, 2, 3)) == 200).all()
    places = np.argwhere(moved)[:, 1:3]
    assert sorted(set(places[:, 0].tolist())) == sorted(set(places[:, 1].tolist())) == [1, 2, 3, 4, 5, 6, 7]
